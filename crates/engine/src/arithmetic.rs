//! Which arithmetic this machine does, and the macro that compiles one kernel for several instruction sets.
//!
//! Our own kernels (norms, softmax, SwiGLU, AdamW) use a fixed number of lanes and no fused multiply-add, so they give
//! the same bits on every instruction set. Matrix products come from the `gemm` crate, whose kernels differ by family:
//! [`class`] names the family, and work is compared bit for bit within one class only, by tolerance between classes.
//! Subnormal numbers are kept: the processor's flush-to-zero mode is never set.

/// Version of the arithmetic: raised whenever a change alters the bits of a training step.
const ARITHMETIC_VERSION: u32 = 1;

/// Instruction sets that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Baseline,
}

/// The widest family that this processor has.
pub(crate) fn family() -> Family {
    #[cfg(test)]
    if let Some(family) = tests::FORCED.get() {
        return family;
    }
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
            {
                return Family::Avx512;
            }
            return Family::Avx2;
        }
    }
    Family::Baseline
}

/// The arithmetic class of this machine: kernel family, element type, engine version; for example `avx512-f32-1`.
///
/// Two machines of one class compute the same bits from the same inputs, whatever their number of threads.
pub fn class() -> String {
    format!("{}-f32-{ARITHMETIC_VERSION}", matrix_family())
}

/// The kernels that the `gemm` crate picks; the only part of the arithmetic whose bits depend on the processor.
fn matrix_family() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        // The same questions in the same order as `gemm` asks them.
        if is_x86_feature_detected!("avx512f") {
            "avx512"
        } else if is_x86_feature_detected!("fma") {
            "avx2"
        } else {
            "portable"
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        "neon"
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        "portable"
    }
}

/// Compiles a function once per instruction set and picks one at run time.
///
/// The body is the same, so are the bits: Rust neither reorders nor fuses floating-point operations.
macro_rules! specialised {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        $visibility fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                fn avx512($($argument: $type),*) $(-> $result)? { body($($argument),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $type),*) $(-> $result)? { body($($argument),*) }
                match $crate::arithmetic::family() {
                    // SAFETY: `family` found every feature that the callee is compiled for.
                    $crate::arithmetic::Family::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: as above.
                    $crate::arithmetic::Family::Avx2 => return unsafe { avx2($($argument),*) },
                    $crate::arithmetic::Family::Baseline => {}
                }
            }
            body($($argument),*)
        }
    };
}
pub(crate) use specialised;

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::{Family, class, family};

    thread_local! {
        /// What [`family`] answers on this thread instead of the truth.
        pub(crate) static FORCED: Cell<Option<Family>> = const { Cell::new(None) };
    }

    /// Runs `work` once for each family that this processor has.
    pub(crate) fn with_each_family(mut work: impl FnMut(Family)) {
        let widest = family();
        let mut families = vec![Family::Baseline];
        #[cfg(target_arch = "x86_64")]
        {
            if widest != Family::Baseline {
                families.push(Family::Avx2);
            }
            if widest == Family::Avx512 {
                families.push(Family::Avx512);
            }
        }
        for family in families {
            FORCED.set(Some(family));
            work(family);
        }
        FORCED.set(None);
        assert_eq!(family(), widest);
    }

    #[test]
    fn class_has_three_parts() {
        let class = class();
        assert_eq!(class.split('-').count(), 3, "{class}");
        assert!(class.contains("-f32-"), "{class}");
    }
}
