//! The XOR transport's codec: autokey cipher and length prefix. Pure, bytes in and bytes out.
//!
//! `c[0] = p[0] ^ 171`, `c[i] = p[i] ^ c[i - 1]`. Over TCP a message is a big-endian `u32` length and that many cipher
//! bytes; over UDP the datagram is the cipher bytes alone. Source: known answers in the tests below, seen to agree
//! between independent clients and a simulated plug.

use std::fmt;

use crate::limits;

/// The port on which IOT plugs listen, TCP and UDP.
pub const PORT: u16 = 9999;

const FIRST_KEY: u8 = 171;

/// Bytes of the length prefix.
pub const PREFIX: usize = 4;

/// Turns `plain` into cipher bytes of the same length.
#[must_use]
pub fn encrypt(plain: &[u8]) -> Vec<u8> {
    let mut key = FIRST_KEY;
    let cipher = plain.iter().map(|byte| {
        key ^= byte;
        key
    });
    cipher.collect()
}

/// Turns cipher bytes into plain ones, in place.
pub fn decrypt(bytes: &mut [u8]) {
    let mut key = FIRST_KEY;
    for byte in bytes {
        let cipher = *byte;
        *byte ^= key;
        key = cipher;
    }
}

/// A whole TCP message: prefix and cipher bytes in one buffer, because plugs take each segment for a message.
///
/// # Errors
/// [`BadLength`] when `plain` is empty or longer than [`limits::XOR_PAYLOAD`].
pub fn frame(plain: &[u8]) -> Result<Vec<u8>, BadLength> {
    let length = u32::try_from(plain.len()).map_err(|_| BadLength(u32::MAX))?;
    check(length)?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend(encrypt(plain));
    Ok(message)
}

/// The payload's length from a message's first four bytes, checked before any memory is taken for it.
///
/// # Errors
/// [`BadLength`] for 0 and for more than [`limits::XOR_PAYLOAD`].
pub fn payload_length(prefix: [u8; PREFIX]) -> Result<usize, BadLength> {
    check(u32::from_be_bytes(prefix))
}

fn check(length: u32) -> Result<usize, BadLength> {
    usize::try_from(length).ok().filter(|n| (1..=limits::XOR_PAYLOAD).contains(n)).ok_or(BadLength(length))
}

/// A message length that no plug has a reason to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadLength(pub u32);

impl fmt::Display for BadLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a message of {} bytes was announced, 1 to {} are believed", self.0, limits::XOR_PAYLOAD)
    }
}

impl std::error::Error for BadLength {}

#[cfg(test)]
mod tests {
    use super::super::hex;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_answers() {
        let plain = br#"{"system":{"get_sysinfo":{}}}"#;
        let udp = hex("d0f281f88bff9af7d5ef94b6d1b4c09fec95e68fe187e8caf08bf68bf6");
        assert_eq!(encrypt(plain), udp);
        let tcp = frame(plain).unwrap();
        assert_eq!(tcp, [&hex("0000001d")[..], &udp[..]].concat());
        assert_eq!(payload_length([0, 0, 0, 0x1d]), Ok(29));
    }

    #[test]
    fn lengths_are_refused_before_memory_is_taken() {
        assert_eq!(payload_length([0; 4]), Err(BadLength(0)));
        assert_eq!(payload_length([0xff; 4]), Err(BadLength(u32::MAX)));
        assert_eq!(payload_length([0, 1, 0, 1]), Err(BadLength(65_537)));
        assert_eq!(payload_length([0, 1, 0, 0]), Ok(65_536));
        assert!(frame(b"").is_err());
    }

    proptest! {
        #[test]
        fn decrypt_undoes_encrypt(plain: Vec<u8>) {
            let mut bytes = encrypt(&plain);
            decrypt(&mut bytes);
            prop_assert_eq!(bytes, plain);
        }
    }
}
