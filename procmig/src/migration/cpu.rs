//! What a processor offers to programs. A program chooses its code by what it finds when it starts, so it may only
//! migrate to processors that have all of it.

use serde::{Deserialize, Serialize};
use std::arch::x86_64::{__cpuid_count, CpuidResult};

/// Leaf, subleaf and register of `CPUID` in which features stand: 0 to 3 for EAX to EDX.
const WORDS: [(u32, u32, usize); 9] = [
    (1, 0, 3),
    (1, 0, 2),
    (7, 0, 1),
    (7, 0, 2),
    (7, 0, 3),
    (7, 1, 0),
    (0xd, 1, 0),
    (0x8000_0001, 0, 2),
    (0x8000_0001, 0, 3),
];

/// Those that programs can use, by word and bit, named as in `/proc/cpuinfo`. Vector state that is not saved for
/// guests is not among them.
const FEATURES: [(usize, u32, &str); 79] = [
    (0, 0, "fpu"),
    (0, 4, "tsc"),
    (0, 8, "cx8"),
    (0, 15, "cmov"),
    (0, 19, "clflush"),
    (0, 23, "mmx"),
    (0, 24, "fxsr"),
    (0, 25, "sse"),
    (0, 26, "sse2"),
    (1, 0, "pni"),
    (1, 1, "pclmulqdq"),
    (1, 9, "ssse3"),
    (1, 12, "fma"),
    (1, 13, "cx16"),
    (1, 19, "sse4_1"),
    (1, 20, "sse4_2"),
    (1, 22, "movbe"),
    (1, 23, "popcnt"),
    (1, 25, "aes"),
    (1, 26, "xsave"),
    (1, 28, "avx"),
    (1, 29, "f16c"),
    (1, 30, "rdrand"),
    (2, 0, "fsgsbase"),
    (2, 3, "bmi1"),
    (2, 5, "avx2"),
    (2, 8, "bmi2"),
    (2, 9, "erms"),
    (2, 11, "rtm"),
    (2, 16, "avx512f"),
    (2, 17, "avx512dq"),
    (2, 18, "rdseed"),
    (2, 19, "adx"),
    (2, 21, "avx512ifma"),
    (2, 23, "clflushopt"),
    (2, 24, "clwb"),
    (2, 28, "avx512cd"),
    (2, 29, "sha_ni"),
    (2, 30, "avx512bw"),
    (2, 31, "avx512vl"),
    (3, 1, "avx512vbmi"),
    (3, 5, "waitpkg"),
    (3, 6, "avx512_vbmi2"),
    (3, 8, "gfni"),
    (3, 9, "vaes"),
    (3, 10, "vpclmulqdq"),
    (3, 11, "avx512_vnni"),
    (3, 12, "avx512_bitalg"),
    (3, 14, "avx512_vpopcntdq"),
    (3, 22, "rdpid"),
    (3, 25, "cldemote"),
    (3, 27, "movdiri"),
    (3, 28, "movdir64b"),
    (4, 4, "fsrm"),
    (4, 8, "avx512_vp2intersect"),
    (4, 14, "serialize"),
    (4, 23, "avx512_fp16"),
    (5, 0, "sha512"),
    (5, 1, "sm3"),
    (5, 2, "sm4"),
    (5, 4, "avx_vnni"),
    (5, 5, "avx512_bf16"),
    (5, 23, "avx_ifma"),
    (6, 0, "xsaveopt"),
    (6, 1, "xsavec"),
    (6, 2, "xgetbv1"),
    (7, 0, "lahf_lm"),
    (7, 5, "abm"),
    (7, 6, "sse4a"),
    (7, 7, "misalignsse"),
    (7, 8, "3dnowprefetch"),
    (7, 11, "xop"),
    (7, 16, "fma4"),
    (7, 21, "tbm"),
    (7, 29, "mwaitx"),
    (8, 11, "syscall"),
    (8, 27, "rdtscp"),
    (8, 30, "3dnowext"),
    (8, 31, "3dnow"),
];

/// What a processor offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuFeatures(pub [u32; WORDS.len()]);

impl CpuFeatures {
    /// This one's.
    pub fn here() -> Self {
        Self(WORDS.map(|(leaf, subleaf, register)| {
            let read = |leaf, subleaf| -> [u32; 4] {
                let CpuidResult { eax, ebx, ecx, edx } = __cpuid_count(leaf, subleaf);
                [eax, ebx, ecx, edx]
            };
            let is_there =
                read(leaf & 0x8000_0000, 0)[0] >= leaf && (subleaf == 0 || leaf != 7 || read(7, 0)[0] >= subleaf);
            if is_there { read(leaf, subleaf)[register] } else { 0 }
        }))
    }

    /// The names of the features that are here, and not at `there`.
    pub fn lacking(&self, there: &Self) -> Vec<&'static str> {
        let is_lacking = |&&(word, bit, _): &&(usize, u32, &str)| self.0[word] & !there.0[word] & 1 << bit != 0;
        FEATURES.iter().filter(is_lacking).map(|&(_, _, name)| name).collect()
    }
}

/// The names of all features that are looked at.
pub fn names() -> impl Iterator<Item = &'static str> {
    FEATURES.iter().map(|&(_, _, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_processor_has_what_the_kernel_says() {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = text.lines().find(|line| line.starts_with("flags")).unwrap();
        let flags: BTreeSet<&str> = flags.split_once(':').unwrap().1.split_whitespace().collect();
        let here: BTreeSet<&str> = CpuFeatures::here().lacking(&CpuFeatures::default()).into_iter().collect();
        let known: BTreeSet<&str> = names().collect();
        assert_eq!(known.len(), FEATURES.len(), "a name stands there twice");
        let missed: Vec<&&str> = flags.intersection(&known).filter(|name| !here.contains(*name)).collect();
        assert!(missed.is_empty(), "{missed:?}");
    }

    #[test]
    fn what_is_lacking_is_named() {
        let here = CpuFeatures::here();
        assert!(here.lacking(&here).is_empty());
        let mut older = here;
        older.0[0] &= !(1 << 26);
        assert_eq!(here.lacking(&older), ["sse2"]);
        assert!(older.lacking(&here).is_empty());
    }
}
