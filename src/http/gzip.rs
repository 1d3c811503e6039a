//! Compression of replies, when a client asks for it.

use std::io::Write as _;
use std::rc::Rc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::header::ACCEPT_ENCODING;
use hyper::http::request::Parts;
use smol::future::yield_now;
use smol::stream::{self, StreamExt as _};

use crate::http::reply::Chunks;
use crate::limits;
use crate::store::StoreError;

/// Whether the client takes gzip.
pub fn is_wanted(request: &Parts) -> bool {
    let lines = request.headers.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    let refused = |parts: &str| {
        let quality = parts.split(';').skip(1).find_map(|part| part.trim().strip_prefix("q="));
        quality.is_some_and(|quality| quality.bytes().all(|byte| matches!(byte, b'0' | b'.')))
    };
    let named = |coding: &str, parts: &str| {
        parts.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case(coding))
    };
    let parts: Vec<&str> = lines.flat_map(|line| line.split(',')).collect();
    let said = parts.iter().find(|parts| named("gzip", parts)).or_else(|| parts.iter().find(|parts| named("*", parts)));
    said.is_some_and(|parts| !refused(parts))
}

fn encoder() -> GzEncoder<Vec<u8>> {
    GzEncoder::new(Vec::new(), Compression::fast())
}

/// `bytes`, compressed in small steps, so that others have their turn.
pub async fn compress(bytes: &[u8]) -> Bytes {
    let mut encoder = encoder();
    for piece in bytes.chunks(limits::STREAM_CHUNK) {
        let _ = encoder.write_all(piece); // a Vec takes everything
        if bytes.len() > limits::STREAM_CHUNK {
            yield_now().await;
        }
    }
    encoder.finish().unwrap_or_default().into()
}

/// Permission to compress a stream: an encoder has 300 KB of memory, so there are few.
#[derive(Clone, Default)]
pub struct Permits(Rc<()>);

impl Permits {
    /// One, while there is one.
    #[must_use]
    pub fn take(&self) -> Option<Self> {
        (Rc::strong_count(&self.0) <= limits::GZIP_STREAMS).then(|| self.clone())
    }
}

/// A stream, compressed as it is sent.
pub fn stream(chunks: Chunks, permit: Permits) -> Chunks {
    let state = (chunks, Some(encoder()), permit);
    Box::pin(stream::unfold(state, |(mut chunks, mut encoder, permit)| async move {
        loop {
            let mut zip = encoder.take()?;
            match chunks.next().await {
                Some(Ok(chunk)) => {
                    let _ = zip.write_all(&chunk); // a Vec takes everything
                    let ready = std::mem::take(zip.get_mut());
                    encoder = Some(zip);
                    if !ready.is_empty() {
                        return Some((Ok(Bytes::from(ready)), (chunks, encoder, permit)));
                    }
                }
                Some(Err(error)) => return Some((Err::<Bytes, StoreError>(error), (chunks, None, permit))),
                None => {
                    let rest = zip.finish().unwrap_or_default();
                    return Some((Ok(Bytes::from(rest)), (chunks, None, permit)));
                }
            }
        }
    }))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Read as _;

    pub fn unzip(bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
        plain
    }

    #[test]
    fn gzip_is_taken_when_it_is_named_or_anything_is() {
        for (line, wanted) in [
            ("gzip", true),
            ("deflate, gzip;q=0.5", true),
            ("GZIP", true),
            ("br, *", true),
            ("gzip;q=0", false),
            ("gzip; q=0.000, *", false),
            ("*;q=0", false),
            ("br", false),
            ("", false),
        ] {
            let request = hyper::Request::builder().header(ACCEPT_ENCODING, line).body(()).unwrap().into_parts().0;
            assert_eq!(is_wanted(&request), wanted, "{line}");
        }
        assert!(!is_wanted(&hyper::Request::builder().body(()).unwrap().into_parts().0));
    }

    #[test]
    fn what_is_compressed_comes_back_and_streams_are_few() {
        let rows: Vec<u8> =
            (0..60_000_u32).flat_map(|n| format!("{{\"power_w\":{}}}\n", n % 977).into_bytes()).collect();
        let small = smol::block_on(compress(&rows));
        assert!(small.len() < rows.len() / 4 && unzip(&small) == rows);
        let permits = Permits::default();
        let taken: Vec<_> = std::iter::from_fn(|| permits.take()).collect();
        assert_eq!(taken.len(), limits::GZIP_STREAMS);
        drop(taken);
        let chunks: Vec<_> = rows.chunks(1_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let stream = stream(Box::pin(smol::stream::iter(chunks)), permits.take().unwrap());
        let sent: Vec<_> = smol::block_on(stream.collect::<Vec<_>>());
        let sent: Vec<u8> = sent.into_iter().flat_map(|chunk| chunk.unwrap().to_vec()).collect();
        assert_eq!(unzip(&sent), rows);
        assert!(permits.take().is_some());
    }
}
