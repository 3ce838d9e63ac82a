//! Which instruction set the kernels use, found once at run time, and the macro that compiles a row
//! loop for each of them.

use std::sync::OnceLock;

/// Instruction sets that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// 16 lanes, 32 registers: AVX-512 with bytes and short vectors (F, BW, VL), as all but the first such CPUs have it.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 8 lanes with fused multiply-add and half-precision loads.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What the compiler makes of plain loops.
    Portable,
}

/// The best instruction set of this machine.
pub fn isa() -> Isa {
    static FOUND: OnceLock<Isa> = OnceLock::new();
    *FOUND.get_or_init(detect)
}

/// Every instruction set this machine can run, best first; tests compare them bit by bit.
pub fn available() -> Vec<Isa> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
        {
            found.push(Isa::Avx512);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            found.push(Isa::Avx2);
        }
    }
    found.push(Isa::Portable);
    found
}

fn detect() -> Isa {
    available().first().copied().unwrap_or(Isa::Portable)
}

/// Defines `$name(isa, args…)`, which runs the `#[inline(always)]` function `$body` compiled for `isa`.
///
/// The body is ordinary Rust; only the instruction selection differs, never the result.
macro_rules! multiversion {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) => $body:path) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(isa: $crate::kernels::dispatch::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) { $body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) { $body($($arg),*) }
                match isa {
                    // SAFETY: an `Isa` of this kind is only made after the CPU reported the feature.
                    $crate::kernels::dispatch::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::kernels::dispatch::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernels::dispatch::Isa::Portable => {}
                }
            }
            let _ = isa;
            $body($($arg),*)
        }
    };
}
pub(crate) use multiversion;
