//! `/proc/PID/maps`: the areas of an address space.

use crate::mm::{Backing, Protection, Region, RegionFlags};
use std::fmt::Write as _;

/// The file of a process with these areas.
pub(super) fn maps(regions: &[Region]) -> Vec<u8> {
    /// Most bytes of the file. Areas can be many and their names long; who reads it gets what goes into
    /// one message to home.
    const MOST: usize = 8 << 20;
    let mut text = String::new();
    for region in regions {
        if text.len() > MOST {
            break;
        }
        let right = |flag, letter| if region.protection.contains(flag) { letter } else { '-' };
        let (offset, device, inode) = match &region.backing {
            Backing::Anonymous => (0, 0, 0),
            // Linux shows its own as private and from 0 on.
            Backing::Object { .. } if region.flags.contains(RegionFlags::SPECIAL) => (0, 0, 0),
            Backing::Object { object, offset } => {
                let (device, inode) = object.identity().map_or((0, 0), |id| (id.device, id.inode));
                (*offset, device, inode)
            }
        };
        let start = text.len();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "{:08x}-{:08x} {}{}{}{} {:08x} {:02x}:{:02x} {} ",
            region.start,
            region.end,
            right(Protection::READ, 'r'),
            right(Protection::WRITE, 'w'),
            right(Protection::EXECUTE, 'x'),
            if region.is_shared() && !region.flags.contains(RegionFlags::SPECIAL) { 's' } else { 'p' },
            offset,
            nix::sys::stat::major(device),
            nix::sys::stat::minor(device),
            inode
        );
        if !region.name.is_empty() {
            // The kernel aligns the names.
            while text.len() - start < 73 {
                text.push(' ');
            }
            text.push_str(&region.name);
        }
        text.push('\n');
    }
    text.into_bytes()
}
