//! The NCCL library, `libnccl.so.2`: found, loaded, asked for its version.
//!
//! The functions' types are those of NCCL 2.19's `nccl.h`; all of them are in every later version. cudarc has bindings
//! too, but looks for `libnccl.so` alone, which neither Debian's `libnccl2` nor Python's wheel contains, and panics where it
//! finds none; its enums are undefined behaviour where a later NCCL answers with a number that they do not list.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::sync::OnceLock;

use numalign_gpu::GpuError;
use numalign_gpu::driver::CuStream;
use numalign_gpu::library::Loaded;
use numalign_gpu::search::SearchPaths;

const NAMES: &[&str] = &["libnccl.so.2", "libnccl.so"];
const LIBRARY: &str = "NCCL (libnccl.so.2)";
const ADVICE: &str = "install NCCL (Debian: libnccl2; Python: nvidia-nccl-cu12), or set LD_LIBRARY_PATH to the folder of \
                      libnccl.so.2; collective: grpc needs none";

/// Oldest NCCL that is used: aborting was not safe before.
const OLDEST: Version = Version(21_900);
/// From here on several ranks may share a GPU, where `NCCL_MULTI_RANK_GPU_ENABLE=1` allows it.
const SHARED_GPU: Version = Version(23_000);

pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;
const UINT32: c_int = 3;
const SUM: c_int = 0;

/// NCCL's handle of a communicator.
pub(super) type Comm = *mut c_void;

/// What all ranks of a communicator have to be given: rank 0 makes it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct UniqueId {
    internal: [u8; UniqueId::BYTES],
}

impl UniqueId {
    /// Length of an id in bytes.
    pub const BYTES: usize = 128;

    /// As it is sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.internal
    }

    /// What another rank sent; `None` if it has another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self { internal: bytes.try_into().ok()? })
    }
}

/// An id admits its holder to the communicator: it is not for logs.
impl std::fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UniqueId(…)")
    }
}

/// `NCCL_VERSION_CODE`: 2.19.3 is 21903.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0 / 10_000, self.0 / 100 % 100, self.0 % 100)
    }
}

/// `ncclConfig_t` as of 2.18. A later library fills in what it knows more, by `size` and `version`.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// Everything as NCCL has it, but that no call waits.
    fn nonblocking() -> Self {
        /// `NCCL_CONFIG_UNDEF_INT`
        const UNDEFINED: c_int = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: OLDEST.0,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
type GetUniqueId = unsafe extern "C" fn(*mut UniqueId) -> c_int;
type InitRank = unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> c_int;
type GetAsyncError = unsafe extern "C" fn(Comm, *mut c_int) -> c_int;
type Abort = unsafe extern "C" fn(Comm) -> c_int;
type AllReduce = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, CuStream) -> c_int;
type GetErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
type GetLastError = unsafe extern "C" fn(Comm) -> *const c_char;

/// The loaded library.
pub struct Nccl {
    unique_id: GetUniqueId,
    init_rank: InitRank,
    async_error: GetAsyncError,
    abort: Abort,
    all_reduce: AllReduce,
    error_string: GetErrorString,
    last_error: GetLastError,
    /// As the library says.
    pub version: Version,
    library: Loaded,
}

impl Nccl {
    /// This process's NCCL; loaded at the first call, and the same answer ever after.
    ///
    /// # Errors
    /// No library, or one that is too old.
    pub fn get() -> Result<&'static Nccl, GpuError> {
        static NCCL: OnceLock<Result<Nccl, GpuError>> = OnceLock::new();
        NCCL.get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Self, GpuError> {
        let candidates = SearchPaths::from_env().candidates(NAMES, "nccl");
        let library = Loaded::first(LIBRARY, &candidates, ADVICE)?;
        let mut code: c_int = 0;
        // SAFETY: the types above are those of nccl.h; ncclGetVersion writes one integer.
        let nccl = unsafe {
            let get_version: GetVersion = library.function("ncclGetVersion")?;
            let result = get_version(&mut code);
            if result != SUCCESS {
                let reason = "it does not tell its version".to_owned();
                return Err(GpuError::Call { call: "ncclGetVersion", code: result, reason });
            }
            let version = Version(code.max(0) as u32);
            if version < OLDEST {
                return Err(GpuError::TooOld { library: "NCCL", version: version.to_string(), needed: "2.19" });
            }
            Self {
                unique_id: library.function("ncclGetUniqueId")?,
                init_rank: library.function("ncclCommInitRankConfig")?,
                async_error: library.function("ncclCommGetAsyncError")?,
                abort: library.function("ncclCommAbort")?,
                all_reduce: library.function("ncclAllReduce")?,
                error_string: library.function("ncclGetErrorString")?,
                last_error: library.function("ncclGetLastError")?,
                version,
                library,
            }
        };
        Ok(nccl)
    }

    /// Where the library was found.
    pub fn path(&self) -> &Path {
        &self.library.path
    }

    /// Whether several ranks may share a GPU, one process each: NCCL 2.30 and later, and only where the user allows it.
    pub fn allows_shared_gpu(&self) -> bool {
        self.version >= SHARED_GPU && std::env::var("NCCL_MULTI_RANK_GPU_ENABLE").is_ok_and(|value| value == "1")
    }

    /// NCCL's description of a result.
    pub(super) fn words(&self, result: c_int, comm: Option<Comm>) -> String {
        // SAFETY: both functions answer with texts that NCCL owns, for any result and any communicator that lives.
        let (short, long) = unsafe {
            let long = comm.map_or(std::ptr::null(), |comm| (self.last_error)(comm));
            (text((self.error_string)(result)), text(long))
        };
        match long.is_empty() {
            true => format!("{short} (code {result})"),
            false => format!("{short} (code {result}): {long}"),
        }
    }

    pub(super) fn make_id(&self) -> Result<UniqueId, c_int> {
        let mut id = UniqueId { internal: [0; UniqueId::BYTES] };
        // SAFETY: it writes 128 bytes.
        let result = unsafe { (self.unique_id)(&mut id) };
        if result == SUCCESS { Ok(id) } else { Err(result) }
    }

    /// Begins to form a communicator on the GPU of the current context; the handle is valid once the library has written one.
    pub(super) fn begin_init(&self, comm: &mut Comm, rank: usize, world: usize, id: UniqueId) -> c_int {
        let mut config = Config::nonblocking();
        // SAFETY: it writes the handle, which the caller keeps where it is, and reads the configuration during the call.
        unsafe { (self.init_rank)(comm, world as c_int, id, rank as c_int, &mut config) }
    }

    /// The communicator's state: success, in progress, or an error that ends it.
    pub(super) fn state(&self, comm: Comm) -> c_int {
        let mut state = SUCCESS;
        // SAFETY: the communicator lives; it writes one integer.
        match unsafe { (self.async_error)(comm, &mut state) } {
            SUCCESS => state,
            failed => failed,
        }
    }

    /// Queues the sum of `count` words over all ranks, in place at `address`, as `uint32`.
    pub(super) fn begin_sum(&self, address: *mut c_void, count: usize, comm: Comm, stream: CuStream) -> c_int {
        // SAFETY: the caller's buffer holds `count` words and outlives the stream's work.
        unsafe { (self.all_reduce)(address.cast_const(), address, count, UINT32, SUM, comm, stream) }
    }

    /// Ends the communicator, whatever it is doing; it must not be used again.
    pub(super) fn abort(&self, comm: Comm) -> c_int {
        // SAFETY: the communicator was begun and not aborted before.
        unsafe { (self.abort)(comm) }
    }
}

/// A text that NCCL owns.
///
/// # Safety
/// `text` is null or ends with a zero byte.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_nvidia_writes_them() {
        assert_eq!(Version(21_903).to_string(), "2.19.3");
        assert_eq!(Version(23_007).to_string(), "2.30.7");
        assert!(Version(21_805) < OLDEST && Version(22_304) > OLDEST);
    }

    #[test]
    fn ids_travel_whole_or_not_at_all() {
        let bytes: Vec<u8> = (0..128).collect();
        assert_eq!(UniqueId::from_bytes(&bytes).unwrap().as_bytes(), bytes);
        assert_eq!(UniqueId::from_bytes(&bytes[..127]), None);
        assert_eq!(format!("{:?}", UniqueId::from_bytes(&bytes).unwrap()), "UniqueId(…)");
    }

    #[test]
    fn the_configuration_has_the_layout_of_nccl_h() {
        // size_t, two unsigned, four int, a pointer, an int and the tail's padding on 64-bit machines.
        assert_eq!(size_of::<Config>(), 48);
        assert_eq!(std::mem::offset_of!(Config, blocking), 16);
        assert_eq!(std::mem::offset_of!(Config, net_name), 32);
    }
}
