//! A GPU's context on the present thread, and what lives in it: a stream, device memory, pinned host memory.
//!
//! All of it belongs to the thread that made it (raw handles are not `Send`), and nothing here panics or blocks in a
//! `Drop`: what cannot be given back is left to the end of the process.

use std::ffi::c_void;
use std::rc::Rc;

use crate::driver::{CuContext, CuDevice, CuDevicePtr, CuStream, Driver, NOT_READY};
use crate::error::GpuError;

/// The primary context of one GPU, which Burn's backend uses too, made current on this thread.
pub struct Context {
    driver: &'static Driver,
    device: CuDevice,
    handle: CuContext,
}

impl Context {
    /// Retains the primary context of GPU `index` and makes it this thread's.
    ///
    /// # Errors
    /// There is no such GPU, or the driver refuses a call.
    pub fn enter(driver: &'static Driver, index: usize) -> Result<Rc<Self>, GpuError> {
        let device = driver.device(index)?;
        let mut handle: CuContext = std::ptr::null_mut();
        // SAFETY: it writes one handle.
        driver.check("cuDevicePrimaryCtxRetain", unsafe { (driver.functions.retain)(&mut handle, device) })?;
        let context = Rc::new(Self { driver, device, handle });
        // SAFETY: the handle was retained above and is released in `drop` only.
        driver.check("cuCtxSetCurrent", unsafe { (driver.functions.set_current)(context.handle) })?;
        Ok(context)
    }

    /// Bytes of device memory that are free, and in all.
    ///
    /// # Errors
    /// The driver refuses the call.
    pub fn memory(&self) -> Result<(u64, u64), GpuError> {
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: it writes two integers; the context is current, since it cannot leave its thread.
        let result = unsafe { (self.driver.functions.memory_info)(&mut free, &mut total) };
        self.driver.check("cuMemGetInfo", result)?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `enter`. A failure leaves the context to the process's end.
        let _ = unsafe { (self.driver.functions.release)(self.device) };
    }
}

/// Bytes of GPU `index` that are free.
///
/// # Errors
/// There is no driver or no such GPU, or the driver refuses a call.
pub fn free_bytes(index: usize) -> Result<u64, GpuError> {
    Ok(Context::enter(Driver::get()?, index)?.memory()?.0)
}

/// A separate stream, which does not wait for the legacy default stream.
pub struct Stream {
    context: Rc<Context>,
    handle: CuStream,
}

impl Stream {
    /// A new stream.
    ///
    /// # Errors
    /// The driver refuses the call.
    pub fn new(context: &Rc<Context>) -> Result<Self, GpuError> {
        const NON_BLOCKING: u32 = 1;
        let mut handle: CuStream = std::ptr::null_mut();
        // SAFETY: it writes one handle.
        let result = unsafe { (context.driver.functions.stream_create)(&mut handle, NON_BLOCKING) };
        context.driver.check("cuStreamCreate", result)?;
        Ok(Self { context: context.clone(), handle })
    }

    /// For NCCL's calls.
    pub fn handle(&self) -> CuStream {
        self.handle
    }

    /// Whether everything queued on the stream is done; never waits.
    ///
    /// # Errors
    /// The driver reports that the work failed.
    pub fn is_idle(&self) -> Result<bool, GpuError> {
        // SAFETY: the stream lives.
        let result = unsafe { (self.context.driver.functions.stream_query)(self.handle) };
        if result == NOT_READY {
            return Ok(false);
        }
        self.context.driver.check("cuStreamQuery", result)?;
        Ok(true)
    }

    /// Queues a copy of `bytes` bytes to the device.
    ///
    /// # Errors
    /// The driver refuses the call.
    pub fn upload(&self, from: &PinnedBuffer, to: &DeviceBuffer, bytes: usize) -> Result<(), GpuError> {
        let bytes = bytes.min(from.bytes).min(to.bytes);
        // SAFETY: both hold that many bytes, and live until the owner of the stream has seen it idle.
        let result = unsafe {
            (self.context.driver.functions.copy_to_device)(to.pointer, from.pointer.cast_const(), bytes, self.handle)
        };
        self.context.driver.check("cuMemcpyHtoDAsync", result)
    }

    /// Queues a copy of `bytes` bytes to the host.
    ///
    /// # Errors
    /// The driver refuses the call.
    pub fn download(&self, from: &DeviceBuffer, to: &mut PinnedBuffer, bytes: usize) -> Result<(), GpuError> {
        let bytes = bytes.min(from.bytes).min(to.bytes);
        // SAFETY: as in `upload`.
        let result =
            unsafe { (self.context.driver.functions.copy_to_host)(to.pointer, from.pointer, bytes, self.handle) };
        self.context.driver.check("cuMemcpyDtoHAsync", result)
    }

    /// Queues a copy within the device.
    ///
    /// # Errors
    /// The driver refuses the call.
    pub fn copy(&self, from: &DeviceBuffer, to: &DeviceBuffer) -> Result<(), GpuError> {
        let bytes = from.bytes.min(to.bytes);
        // SAFETY: as in `upload`.
        let result =
            unsafe { (self.context.driver.functions.copy_on_device)(to.pointer, from.pointer, bytes, self.handle) };
        self.context.driver.check("cuMemcpyDtoDAsync", result)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created in `new`. The driver lets queued work finish by itself and does not wait for it.
        let _ = unsafe { (self.context.driver.functions.stream_destroy)(self.handle) };
    }
}

/// Memory on the device.
pub struct DeviceBuffer {
    context: Rc<Context>,
    pointer: CuDevicePtr,
    bytes: usize,
}

impl DeviceBuffer {
    /// `bytes` bytes, not cleared.
    ///
    /// # Errors
    /// The device has not enough memory.
    pub fn new(context: &Rc<Context>, bytes: usize) -> Result<Self, GpuError> {
        let mut pointer = 0;
        // SAFETY: it writes one pointer.
        let result = unsafe { (context.driver.functions.allocate)(&mut pointer, bytes.max(1)) };
        context.driver.check("cuMemAlloc", result)?;
        Ok(Self { context: context.clone(), pointer, bytes })
    }

    /// The device's address, for NCCL's calls.
    pub fn address(&self) -> *mut c_void {
        self.pointer as *mut c_void
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`.
        let _ = unsafe { (self.context.driver.functions.free)(self.pointer) };
    }
}

/// Host memory that the device reads and writes by itself, so that copies never hold up the thread.
pub struct PinnedBuffer {
    context: Rc<Context>,
    pointer: *mut c_void,
    bytes: usize,
}

impl PinnedBuffer {
    /// `bytes` bytes, zeroed.
    ///
    /// # Errors
    /// The driver cannot allocate that much.
    pub fn new(context: &Rc<Context>, bytes: usize) -> Result<Self, GpuError> {
        let mut pointer = std::ptr::null_mut();
        // SAFETY: it writes one pointer.
        let result = unsafe { (context.driver.functions.allocate_host)(&mut pointer, bytes.max(1)) };
        context.driver.check("cuMemAllocHost", result)?;
        // SAFETY: the driver allocated that many bytes.
        unsafe { std::ptr::write_bytes(pointer.cast::<u8>(), 0, bytes.max(1)) };
        Ok(Self { context: context.clone(), pointer, bytes })
    }

    /// The buffer as words. No copy may be under way.
    pub fn words(&self) -> &[u32] {
        // SAFETY: the driver's memory is page-aligned, holds `bytes` initialised bytes, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.pointer.cast::<u32>().cast_const(), self.bytes / 4) }
    }

    /// The buffer as words. No copy may be under way.
    pub fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: as in `words`, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast::<u32>(), self.bytes / 4) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`.
        let _ = unsafe { (self.context.driver.functions.free_host)(self.pointer) };
    }
}
