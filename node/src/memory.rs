//! Sizes of memory: reading them, showing them, and what this machine has.

use std::str::FromStr;

/// The least RAM that a node may have.
pub const LEAST: u64 = 64 << 20;
/// The default RAM of a node, where the machine has twice that.
const DEFAULT: u64 = 4 << 30;
/// RAM of a node is a multiple of this, the size of a large page.
const GRAIN: u64 = 2 << 20;
/// With less than this available, not even an empty node is started.
const RESERVE: u64 = 64 << 20;

/// A number of bytes as users write it: `512M`, `4G`, `4GiB`, or plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

/// A size that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadSize {
    /// Not a number with a unit.
    #[error("a size is a number and a unit, as 512M or 4G")]
    Syntax,
    /// More than 2^64 bytes.
    #[error("this size is larger than any memory")]
    TooLarge,
}

impl FromStr for Size {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(BadSize::Syntax);
        }
        let number: u64 = number.parse().map_err(|_| BadSize::TooLarge)?;
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(BadSize::Syntax),
        };
        number.checked_mul(1 << shift).map(Self).ok_or(BadSize::TooLarge)
    }
}

/// Shows bytes with a binary unit and about three digits: `512M`, `1.5G`.
pub fn show(bytes: u64) -> String {
    let units = ["", "K", "M", "G", "T", "P", "E"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value >= 100.0 || (value - value.round()).abs() < 0.05 {
        format!("{value:.0}{}", units[unit])
    } else {
        format!("{value:.1}{}", units[unit])
    }
}

/// Memory of this machine in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// All of it.
    pub total: u64,
    /// What may be used without swapping.
    pub available: u64,
}

impl Machine {
    /// Reads `/proc/meminfo`.
    ///
    /// # Errors
    /// If it cannot be read or lacks the two lines.
    pub fn read() -> std::io::Result<Self> {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        Self::parse(&text).ok_or_else(|| std::io::Error::other("/proc/meminfo lacks MemTotal or MemAvailable"))
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Self { total: field("MemTotal")?, available: field("MemAvailable")? })
    }

    /// RAM of a node when the user asks for none: 4 GiB, or half of the machine's if that is less.
    pub fn default_node(&self) -> u64 {
        (DEFAULT.min(self.total / 2) / GRAIN * GRAIN).max(LEAST)
    }

    /// Checks a node's RAM and rounds it up to whole large pages. Guest RAM costs nothing until it
    /// is touched, so a node may have as much as the machine has.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn check_node(&self, bytes: u64) -> Result<u64, String> {
        if bytes < LEAST {
            return Err(format!("a node needs at least {}; use --memory {}", show(LEAST), show(LEAST)));
        }
        if bytes > self.total {
            let (asked, total) = (show(bytes), show(self.total));
            return Err(format!(
                "a node of {asked} does not fit this machine, which has {total}; use a smaller --memory"
            ));
        }
        if self.available < RESERVE {
            let free = show(self.available);
            return Err(format!("only {free} of memory is available on this machine; end something that uses much"));
        }
        Ok(bytes.div_ceil(GRAIN) * GRAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [("512M", 512 << 20), ("4G", 4 << 30), ("4GiB", 4 << 30), ("1k", 1024), ("77", 77)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "G", "4X", "-1G", "1.5G", "4 G"] {
            assert_eq!(text.parse::<Size>(), Err(BadSize::Syntax), "{text}");
        }
        for text in ["99999999999999999999", "99999999T"] {
            assert_eq!(text.parse::<Size>(), Err(BadSize::TooLarge), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        for (bytes, text) in
            [(0, "0"), (1023, "1023"), (1024, "1K"), (3 << 29, "1.5G"), (4 << 30, "4G"), (u64::MAX, "16E")]
        {
            assert_eq!(show(bytes), text);
        }
    }

    #[test]
    fn a_node_larger_than_the_machine_is_refused_with_advice() {
        let machine = Machine { total: 8 << 30, available: 2 << 30 };
        assert_eq!(machine.check_node(8 << 30), Ok(8 << 30));
        assert_eq!(machine.check_node((64 << 20) + 1), Ok(66 << 20));
        assert!(machine.check_node(9 << 30).unwrap_err().contains("smaller --memory"));
        assert!(machine.check_node(1 << 20).unwrap_err().contains("at least 64M"));
        assert!(Machine { available: 1 << 20, ..machine }.check_node(1 << 30).unwrap_err().contains("available"));
        assert_eq!(machine.default_node(), 4 << 30);
        assert_eq!(Machine { total: 2 << 30, available: 0 }.default_node(), 1 << 30);
    }

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       16 kB\nMemFree: 1 kB\nMemAvailable:    8 kB\n";
        assert_eq!(Machine::parse(text), Some(Machine { total: 16 << 10, available: 8 << 10 }));
        assert_eq!(Machine::parse("MemTotal: x kB"), None);
    }
}
