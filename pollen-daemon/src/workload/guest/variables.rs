//! Extism's variables, which live for one call. Invariant: their size is bounded.

use std::collections::BTreeMap;

/// Keys and values of one call, in bytes: what Extism's own runtimes allow by default.
pub const VARIABLES_BYTES_MAX: usize = 1024 * 1024;

/// The variables of one call.
#[derive(Default)]
pub struct Variables {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    bytes: usize,
}

/// There is no room for a variable; it is as it was.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("variables would take {bytes} bytes, over the limit of {VARIABLES_BYTES_MAX}")]
pub struct Full {
    bytes: usize,
}

impl Variables {
    pub fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.values.get(key).map(Vec::as_slice)
    }

    pub fn set(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), Full> {
        let replaced = self.values.get(&key).map_or(0, |old| key.len() + old.len());
        let bytes = self.bytes - replaced + key.len() + value.len();
        if bytes > VARIABLES_BYTES_MAX {
            return Err(Full { bytes });
        }
        self.bytes = bytes;
        self.values.insert(key, value);
        Ok(())
    }

    pub fn remove(&mut self, key: &[u8]) {
        if let Some(value) = self.values.remove(key) {
            self.bytes -= key.len() + value.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_held_to_their_limit_however_often_they_change() {
        let mut variables = Variables::default();
        for _ in 0..10 {
            variables.set(b"k".to_vec(), vec![0; VARIABLES_BYTES_MAX - 1]).expect("it just fits");
        }
        assert_eq!(variables.set(b"l".to_vec(), Vec::new()), Err(Full { bytes: VARIABLES_BYTES_MAX + 1 }));
        variables.remove(b"k");
        variables.set(b"l".to_vec(), vec![7]).expect("there is room again");
        assert_eq!((variables.value(b"k"), variables.value(b"l")), (None, Some(&[7][..])));
    }
}
