//! Lists of a message that have no more entries than they may, whatever the message claims: an entry may take a hundred
//! times as much memory as it does in the message.

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::marker::PhantomData;

/// Entries that there is room for before the first has come.
const EARLY: usize = 64;

struct Capped<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Capped<T, MOST> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MOST} entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
        let claimed = entries.size_hint().unwrap_or(0);
        if claimed > MOST {
            return Err(A::Error::invalid_length(claimed, &self));
        }
        let mut list = Vec::with_capacity(claimed.min(EARLY));
        while let Some(entry) = entries.next_element()? {
            if list.len() == MOST {
                return Err(A::Error::invalid_length(MOST + 1, &self));
            }
            list.push(entry);
        }
        Ok(list)
    }
}

/// Reads a list of at most `MOST` entries.
///
/// # Errors
/// If there are more.
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MOST: usize>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(Capped::<T, MOST>(PhantomData))
}

#[cfg(test)]
mod tests {
    #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
    struct Three(#[serde(deserialize_with = "super::list::<_, _, 3>")] Vec<u64>);

    #[test]
    fn a_list_is_as_long_as_it_may_be() {
        for length in 0..=3 {
            let list = Three((0..length).collect());
            assert_eq!(postcard::from_bytes(&postcard::to_stdvec(&list).unwrap()), Ok(list));
        }
        assert!(postcard::from_bytes::<Three>(&postcard::to_stdvec(&Three(vec![0; 4])).unwrap()).is_err());
        // A length of 2^63 is claimed.
        let claim = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0];
        assert!(postcard::from_bytes::<Three>(&claim).is_err());
    }
}
