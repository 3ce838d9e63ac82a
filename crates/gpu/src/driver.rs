//! The CUDA driver, `libcuda.so.1`: loaded once per process, asked about its GPUs.
//!
//! The functions' types are those of CUDA's `cuda.h` (the ABI of each symbol, with its `_v2` where there is one, has not
//! changed since CUDA 4; `cuDeviceGetUuid` is of 9.2). Results are plain integers, since a later driver may know more of
//! them than any list here.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use crate::error::GpuError;
use crate::library::Loaded;

pub(crate) type CuResult = c_int;
pub(crate) type CuDevice = c_int;
pub(crate) type CuDevicePtr = u64;
pub(crate) type CuContext = *mut c_void;
/// NCCL's `cudaStream_t` is the same handle.
pub type CuStream = *mut c_void;

const SUCCESS: CuResult = 0;
pub(crate) const NOT_READY: CuResult = 600;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
/// `CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED`
const TENSOR_MAPS: c_int = 127;

const NAMES: &[&str] = &["libcuda.so.1", "libcuda.so"];
const LIBRARY: &str = "the NVIDIA driver's library (libcuda.so.1)";
const ADVICE: &str = "install the NVIDIA driver (in a container: give it the GPUs, such as --gpus all), or set LD_LIBRARY_PATH \
                      to the folder of libcuda.so.1";

/// Declares the functions that are used, and their lookup.
macro_rules! functions {
    ($(fn $field:ident = $symbol:literal $(or $other:literal)? ($($type:ty),*);)+) => {
        pub(crate) struct Functions {
            $(pub(crate) $field: unsafe extern "C" fn($($type),*) -> CuResult,)+
        }

        impl Functions {
            fn of(library: &Loaded) -> Result<Self, GpuError> {
                Ok(Self {
                    // SAFETY: the types above are those of cuda.h.
                    $($field: unsafe { library.function($symbol)$(.or_else(|_| library.function($other)))? }?,)+
                })
            }
        }
    };
}

functions! {
    fn init = "cuInit" (c_uint);
    fn driver_version = "cuDriverGetVersion" (*mut c_int);
    fn error_string = "cuGetErrorString" (CuResult, *mut *const c_char);
    fn device_count = "cuDeviceGetCount" (*mut c_int);
    fn device = "cuDeviceGet" (*mut CuDevice, c_int);
    fn device_name = "cuDeviceGetName" (*mut c_char, c_int, CuDevice);
    // The first names a MIG slice by its GPU, as NCCL sees it; CUDA 13's headers only have the second.
    fn device_uuid = "cuDeviceGetUuid" or "cuDeviceGetUuid_v2" (*mut [u8; 16], CuDevice);
    fn device_memory = "cuDeviceTotalMem_v2" (*mut usize, CuDevice);
    fn device_attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, CuDevice);
    fn can_access_peer = "cuDeviceCanAccessPeer" (*mut c_int, CuDevice, CuDevice);
    fn retain = "cuDevicePrimaryCtxRetain" (*mut CuContext, CuDevice);
    fn release = "cuDevicePrimaryCtxRelease_v2" (CuDevice);
    fn set_current = "cuCtxSetCurrent" (CuContext);
    fn memory_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
    fn allocate = "cuMemAlloc_v2" (*mut CuDevicePtr, usize);
    fn free = "cuMemFree_v2" (CuDevicePtr);
    fn allocate_host = "cuMemAllocHost_v2" (*mut *mut c_void, usize);
    fn free_host = "cuMemFreeHost" (*mut c_void);
    fn copy_to_device = "cuMemcpyHtoDAsync_v2" (CuDevicePtr, *const c_void, usize, CuStream);
    fn copy_to_host = "cuMemcpyDtoHAsync_v2" (*mut c_void, CuDevicePtr, usize, CuStream);
    fn copy_on_device = "cuMemcpyDtoDAsync_v2" (CuDevicePtr, CuDevicePtr, usize, CuStream);
    fn stream_create = "cuStreamCreate" (*mut CuStream, c_uint);
    fn stream_destroy = "cuStreamDestroy_v2" (CuStream);
    fn stream_query = "cuStreamQuery" (CuStream);
}

/// The loaded and initialised driver.
pub struct Driver {
    pub(crate) functions: Functions,
    library: Loaded,
}

/// One visible GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Number among the visible ones (`CUDA_VISIBLE_DEVICES` hides and renumbers), from 0.
    pub index: usize,
    /// As the driver calls it, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// In the driver's notation, `GPU-8a3f…`: the same for every process that sees the GPU.
    pub uuid: String,
    /// Bytes in all.
    pub memory: u64,
    /// Compute capability, such as (9, 0).
    pub capability: (u32, u32),
    /// Whether the GPU's copy engine reads tiles by tensor maps (Hopper's TMA); false where the driver does not know.
    pub tensor_maps: bool,
}

impl Driver {
    /// This process's driver; loaded at the first call, and the same answer ever after.
    ///
    /// # Errors
    /// The library is missing, too old, or cannot be initialised.
    pub fn get() -> Result<&'static Driver, GpuError> {
        static DRIVER: OnceLock<Result<Driver, GpuError>> = OnceLock::new();
        DRIVER.get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Self, GpuError> {
        // The driver belongs to the kernel's module: no toolkit and no wheel has one.
        let candidates: Vec<_> = NAMES.iter().map(Into::into).collect();
        let library = Loaded::first(LIBRARY, &candidates, ADVICE)?;
        let driver = Self { functions: Functions::of(&library)?, library };
        // SAFETY: the flags must be 0.
        let started = unsafe { (driver.functions.init)(0) };
        driver.check("cuInit", started)?;
        Ok(driver)
    }

    /// Where the library was found.
    pub fn path(&self) -> &std::path::Path {
        &self.library.path
    }

    /// An error for every result but success.
    pub(crate) fn check(&self, call: &'static str, result: CuResult) -> Result<(), GpuError> {
        if result == SUCCESS {
            return Ok(());
        }
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: the text, where there is one, is a constant of the library's.
        let reason = unsafe {
            match (self.functions.error_string)(result, &mut text) {
                SUCCESS if !text.is_null() => CStr::from_ptr(text).to_string_lossy().into_owned(),
                _ => "the driver gives no reason".to_owned(),
            }
        };
        Err(GpuError::Call { call, code: result, reason })
    }

    /// The CUDA version that the driver can run, such as (12, 4).
    ///
    /// # Errors
    /// The driver refuses the call.
    pub fn cuda_version(&self) -> Result<(u32, u32), GpuError> {
        let mut version = 0;
        // SAFETY: it writes one integer.
        self.check("cuDriverGetVersion", unsafe { (self.functions.driver_version)(&mut version) })?;
        let version = version.max(0) as u32;
        Ok((version / 1000, version % 1000 / 10))
    }

    /// How many GPUs are visible; none is no error.
    ///
    /// # Errors
    /// The driver refuses the call.
    pub fn count(&self) -> Result<usize, GpuError> {
        let mut count = 0;
        // SAFETY: it writes one integer.
        self.check("cuDeviceGetCount", unsafe { (self.functions.device_count)(&mut count) })?;
        Ok(count.max(0) as usize)
    }

    /// The handle of GPU `index`.
    pub(crate) fn device(&self, index: usize) -> Result<CuDevice, GpuError> {
        let count = self.count()?;
        if count == 0 {
            return Err(GpuError::NoGpu);
        }
        if index >= count {
            return Err(GpuError::NoSuchGpu { wanted: index, count });
        }
        let mut device = 0;
        // SAFETY: it writes one integer.
        self.check("cuDeviceGet", unsafe { (self.functions.device)(&mut device, index as c_int) })?;
        Ok(device)
    }

    /// What GPU `index` is.
    ///
    /// # Errors
    /// There is no such GPU, or the driver refuses a call.
    pub fn gpu(&self, index: usize) -> Result<Gpu, GpuError> {
        let device = self.device(index)?;
        let mut name = [0 as c_char; 128];
        let mut uuid = [0u8; 16];
        let mut memory = 0usize;
        // SAFETY: each writes into a place of the size that it is told, or that cuda.h gives it.
        unsafe {
            let functions = &self.functions;
            let length = name.len() as c_int;
            self.check("cuDeviceGetName", (functions.device_name)(name.as_mut_ptr(), length, device))?;
            self.check("cuDeviceGetUuid", (functions.device_uuid)(&mut uuid, device))?;
            self.check("cuDeviceTotalMem", (functions.device_memory)(&mut memory, device))?;
        }
        let name: Vec<u8> = name.iter().map(|c| *c as u8).take_while(|byte| *byte != 0).collect();
        let attribute = |which: c_int| -> Result<u32, GpuError> {
            let mut value = 0;
            // SAFETY: it writes one integer.
            let result = unsafe { (self.functions.device_attribute)(&mut value, which, device) };
            self.check("cuDeviceGetAttribute", result)?;
            Ok(value.max(0) as u32)
        };
        Ok(Gpu {
            index,
            name: String::from_utf8_lossy(&name).into_owned(),
            uuid: uuid_text(&uuid),
            memory: memory as u64,
            capability: (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?),
            // An older driver does not know the question.
            tensor_maps: attribute(TENSOR_MAPS).is_ok_and(|yes| yes == 1),
        })
    }

    /// All visible GPUs.
    ///
    /// # Errors
    /// The driver refuses a call.
    pub fn gpus(&self) -> Result<Vec<Gpu>, GpuError> {
        (0..self.count()?).map(|index| self.gpu(index)).collect()
    }

    /// Whether GPU `from` can read and write the memory of GPU `to` directly.
    ///
    /// # Errors
    /// There is no such GPU, or the driver refuses the call.
    pub fn can_access_peer(&self, from: usize, to: usize) -> Result<bool, GpuError> {
        let (from, to) = (self.device(from)?, self.device(to)?);
        let mut can = 0;
        // SAFETY: it writes one integer.
        self.check("cuDeviceCanAccessPeer", unsafe { (self.functions.can_access_peer)(&mut can, from, to) })?;
        Ok(can != 0)
    }
}

/// Visible GPUs of this machine: 0 if there is no driver.
pub fn visible_gpus() -> usize {
    Driver::get().and_then(Driver::count).unwrap_or(0)
}

fn uuid_text(uuid: &[u8; 16]) -> String {
    let mut text = "GPU-".to_owned();
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_look_as_nvidia_smi_shows_them() {
        let uuid: [u8; 16] = std::array::from_fn(|i| i as u8);
        assert_eq!(uuid_text(&uuid), "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f");
    }
}
