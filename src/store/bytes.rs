//! Bytes of the store's own formats: variable-length numbers, and reading with every length checked. Pure.

/// Why bytes cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadBytes {
    /// They end too soon, or go on too long.
    Length,
    /// A number that 64 bits cannot hold.
    Value,
}

/// Appends seven bits per byte, least significant first, the highest bit set on all but the last.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Bytes not yet read.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next `length` bytes.
    ///
    /// # Errors
    /// [`BadBytes::Length`] when there are fewer.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], BadBytes> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(BadBytes::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// [`BadBytes::Length`] when there are fewer.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], BadBytes> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(BadBytes::Length)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// The next number of [`put_varint`].
    ///
    /// # Errors
    /// [`BadBytes`] when it is cut off or has more than 64 bits.
    pub fn varint(&mut self) -> Result<u64, BadBytes> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let low = u64::from(byte & 0x7f);
            if low << shift >> shift != low {
                return Err(BadBytes::Value);
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(BadBytes::Value)
    }

    /// # Errors
    /// [`BadBytes::Length`] when bytes are left.
    pub fn end(&self) -> Result<(), BadBytes> {
        if self.0.is_empty() { Ok(()) } else { Err(BadBytes::Length) }
    }
}
