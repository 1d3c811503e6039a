//! SPAKE2+ (RFC 9383) on P-256 with SHA-256, HKDF-SHA256 and HMAC-SHA256: both sides prove that they know a password, and
//! neither learns it. Pure.
//!
//! Promises that a share which is no point of the curve, or leads to the identity, is refused. Source: the RFC's own
//! vectors in the tests below.

use std::fmt;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use p256::elliptic_curve::ff::{FromUniformBytes, PrimeField};
use p256::elliptic_curve::group::Group;
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::{ProjectivePoint, PublicKey, Scalar};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The RFC's points for P-256, compressed.
const M: [u8; 33] = [
    0x02, 0x88, 0x6e, 0x2f, 0x97, 0xac, 0xe4, 0x6e, 0x55, 0xba, 0x9d, 0xd7, 0x24, 0x25, 0x79, 0xf2, 0x99, 0x3b, 0x64,
    0xe1, 0x6e, 0xf3, 0xdc, 0xab, 0x95, 0xaf, 0xd4, 0x97, 0x33, 0x3d, 0x8f, 0xa1, 0x2f,
];
const N: [u8; 33] = [
    0x03, 0xd8, 0xbb, 0xd6, 0xc6, 0x39, 0xc6, 0x29, 0x37, 0xb0, 0x4d, 0x99, 0x7f, 0x38, 0xc3, 0x77, 0x07, 0x19, 0xc6,
    0x29, 0xd7, 0x01, 0x4d, 0x49, 0xa2, 0x4b, 0x4f, 0x98, 0xba, 0xa1, 0x29, 0x2b, 0x49,
];

/// The two numbers that stand for the password.
#[derive(Clone)]
pub struct Secrets {
    w0: Scalar,
    w1: Scalar,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

impl Secrets {
    /// From the password by PBKDF2 over 80 bytes. Takes as long as `iterations` ask for: a worker's work.
    #[must_use]
    pub fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let stretched = pbkdf2::pbkdf2_hmac_array::<Sha256, 80>(password, salt, iterations);
        let (w0, w1) = stretched.split_at(40);
        Self { w0: scalar(w0), w1: scalar(w1) }
    }

    /// What the verifier keeps in the place of w1.
    #[must_use]
    pub fn record(&self) -> ProjectivePoint {
        ProjectivePoint::GENERATOR * self.w1
    }

    /// Whether w0 is one of the few whose two encodings differ.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.w0.to_repr().first() == Some(&0)
    }

    fn encoded(&self, form: Form) -> Vec<u8> {
        let bytes = self.w0.to_repr();
        match form {
            Form::Whole => bytes.to_vec(),
            Form::Minimal => bytes.iter().copied().skip_while(|byte| *byte == 0).collect(),
        }
    }
}

/// How w0 enters the transcript. The implementations disagree; it matters when its first byte is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// All 32 bytes, as the RFC wants it.
    Whole,
    /// Without leading zeros.
    Minimal,
}

/// At most 64 big-endian bytes, reduced modulo the order of the group.
#[must_use]
pub fn scalar(bytes: &[u8]) -> Scalar {
    let mut wide = [0; 64];
    for (to, from) in wide.iter_mut().rev().zip(bytes.iter().rev()) {
        *to = *from;
    }
    Scalar::from_uniform_bytes(&wide)
}

/// Who talks, and about what.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// What the transcript begins with.
    pub text: &'a [u8],
    /// The prover's name.
    pub prover: &'a [u8],
    /// The verifier's name.
    pub verifier: &'a [u8],
}

/// What one side has in the end.
pub struct Agreed {
    /// What to send as proof.
    pub confirm: [u8; 32],
    /// What the peer's proof has to be.
    expected: [u8; 32],
    /// The key that both sides have.
    pub shared: [u8; 32],
}

impl fmt::Debug for Agreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Agreed(..)")
    }
}

impl Agreed {
    /// Whether this proves that the peer knows the password. Takes the same time for every answer.
    #[must_use]
    pub fn is_proof(&self, confirm: &[u8]) -> bool {
        self.expected.ct_eq(confirm).into()
    }
}

/// The prover's share for the random number `x`, uncompressed.
#[must_use]
pub fn prover_share(secrets: &Secrets, x: &Scalar) -> Option<Vec<u8>> {
    Some(encode(&(ProjectivePoint::GENERATOR * x + point(&M)? * secrets.w0)))
}

/// The verifier's share for the random number `y`, uncompressed.
#[must_use]
pub fn verifier_share(secrets: &Secrets, y: &Scalar) -> Option<Vec<u8>> {
    Some(encode(&(ProjectivePoint::GENERATOR * y + point(&N)? * secrets.w0)))
}

/// The prover's end. `None` when the verifier's share cannot be one.
#[must_use]
pub fn prove(secrets: &Secrets, form: Form, x: &Scalar, context: Context<'_>, verifier_share: &[u8]) -> Option<Agreed> {
    let peer = point(verifier_share)?;
    let bare = peer - point(&N)? * secrets.w0;
    let (z, v) = (bare * x, bare * secrets.w1);
    let (own, peer) = (prover_share(secrets, x)?, encode(&peer));
    let keys = keys(context, &own, &peer, &z, &v, &secrets.encoded(form))?;
    Some(Agreed { confirm: mac(&keys.prover, &peer)?, expected: mac(&keys.verifier, &own)?, shared: keys.shared })
}

/// The verifier's end, with the record that it keeps. `None` when the prover's share cannot be one.
#[must_use]
pub fn verify(
    secrets: &Secrets,
    record: &ProjectivePoint,
    form: Form,
    y: &Scalar,
    context: Context<'_>,
    prover_share: &[u8],
) -> Option<Agreed> {
    let peer = point(prover_share)?;
    let z = (peer - point(&M)? * secrets.w0) * y;
    let v = *record * y;
    let (own, peer) = (verifier_share(secrets, y)?, encode(&peer));
    let keys = keys(context, &peer, &own, &z, &v, &secrets.encoded(form))?;
    Some(Agreed { confirm: mac(&keys.verifier, &peer)?, expected: mac(&keys.prover, &own)?, shared: keys.shared })
}

struct Keys {
    prover: [u8; 32],
    verifier: [u8; 32],
    shared: [u8; 32],
}

fn keys(
    context: Context<'_>,
    prover_share: &[u8],
    verifier_share: &[u8],
    z: &ProjectivePoint,
    v: &ProjectivePoint,
    w0: &[u8],
) -> Option<Keys> {
    if bool::from(z.is_identity()) || bool::from(v.is_identity()) {
        return None;
    }
    let (m, n, z, v) = (encode(&point(&M)?), encode(&point(&N)?), encode(z), encode(v));
    let items = [context.text, context.prover, context.verifier, &m, &n, prover_share, verifier_share, &z, &v, w0];
    let mut transcript = Sha256::new();
    for item in items {
        transcript.update(u64::try_from(item.len()).ok()?.to_le_bytes());
        transcript.update(item);
    }
    let main = transcript.finalize();
    let mut confirm = [0; 64];
    expand(&main, &[], b"ConfirmationKeys", &mut confirm)?;
    let (prover, verifier) = confirm.split_at(32);
    let mut shared = [0; 32];
    expand(&main, &[], b"SharedKey", &mut shared)?;
    Some(Keys { prover: prover.try_into().ok()?, verifier: verifier.try_into().ok()?, shared })
}

/// HKDF-SHA256. `None` only for an output longer than 8 kB.
pub(super) fn expand(key: &[u8], salt: &[u8], info: &[u8], output: &mut [u8]) -> Option<()> {
    Hkdf::<Sha256>::new(Some(salt), key).expand(info, output).ok()
}

fn mac(key: &[u8], message: &[u8]) -> Option<[u8; 32]> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).ok()?;
    mac.update(message);
    Some(mac.finalize().into_bytes().into())
}

/// A point that is on the curve and is not the identity.
fn point(bytes: &[u8]) -> Option<ProjectivePoint> {
    PublicKey::from_sec1_bytes(bytes).ok().map(|key| key.to_projective())
}

fn encode(point: &ProjectivePoint) -> Vec<u8> {
    point.to_sec1_point(false).as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::super::hex;
    use super::*;

    /// RFC 9383, appendix C, the first of the P-256 vectors.
    #[test]
    fn the_vectors_of_the_rfc() {
        let secrets = Secrets {
            w0: scalar(&hex("bb8e1bbcf3c48f62c08db243652ae55d3e5586053fca77102994f23ad95491b3")),
            w1: scalar(&hex("7e945f34d78785b8a3ef44d0df5a1a97d6b3b460409a345ca7830387a74b1dba")),
        };
        let x = scalar(&hex("d1232c8e8693d02368976c174e2088851b8365d0d79a9eee709c6a05a2fad539"));
        let y = scalar(&hex("717a72348a182085109c8d3917d6c43d59b224dc6a7fc4f0483232fa6516d8b3"));
        let context = Context {
            text: b"SPAKE2+-P256-SHA256-HKDF-SHA256-HMAC-SHA256 Test Vectors",
            prover: b"client",
            verifier: b"server",
        };
        let share_p = hex(
            "04ef3bd051bf78a2234ec0df197f7828060fe9856503579bb1733009042c15c0c1de127727f418b5966afadfdd95a6e4591d171056b333dab97a79c7193e341727",
        );
        let share_v = hex(
            "04c0f65da0d11927bdf5d560c69e1d7d939a05b0e88291887d679fcadea75810fb5cc1ca7494db39e82ff2f50665255d76173e09986ab46742c798a9a68437b048",
        );
        assert_eq!(prover_share(&secrets, &x).unwrap(), share_p);
        assert_eq!(verifier_share(&secrets, &y).unwrap(), share_v);
        let prover = prove(&secrets, Form::Whole, &x, context, &share_v).unwrap();
        let verifier = verify(&secrets, &secrets.record(), Form::Whole, &y, context, &share_p).unwrap();
        assert_eq!(prover.confirm.to_vec(), hex("926cc713504b9b4d76c9162ded04b5493e89109f6d89462cd33adc46fda27527"));
        assert_eq!(verifier.confirm.to_vec(), hex("9747bcc4f8fe9f63defee53ac9b07876d907d55047e6ff2def2e7529089d3e68"));
        let shared = hex("0c5f8ccd1413423a54f6c1fb26ff01534a87f893779c6e68666d772bfd91f3e7");
        assert_eq!((prover.shared.to_vec(), verifier.shared.to_vec()), (shared.clone(), shared));
        assert!(prover.is_proof(&verifier.confirm) && verifier.is_proof(&prover.confirm));
        assert!(!prover.is_proof(&prover.confirm) && !prover.is_proof(b""));
    }

    #[test]
    fn shares_that_cannot_be_are_refused() {
        let secrets = Secrets::derive(b"password", &[0; 16], 1);
        let context = Context { text: b"", prover: b"", verifier: b"" };
        let prove = |share: &[u8]| prove(&secrets, Form::Whole, &scalar(&[7]), context, share);
        assert!(prove(b"").is_none());
        assert!(prove(&[0]).is_none(), "the identity");
        assert!(prove(&[&[4][..], &[1; 64]].concat()).is_none(), "off the curve");
        // A share that cancels the password leaves a key that everybody knows.
        let cancelling = encode(&(point(&N).unwrap() * secrets.w0));
        assert!(prove(&cancelling).is_none());
    }

    #[test]
    fn both_forms_of_a_short_w0_are_known() {
        let short = Secrets { w0: scalar(&[0, 0, 5, 6]), w1: scalar(&[1]) };
        assert!(short.is_short());
        assert_eq!(short.encoded(Form::Whole).len(), 32);
        assert_eq!(short.encoded(Form::Minimal), [5, 6]);
        let (x, y, context) = (scalar(&[7]), scalar(&[8]), Context { text: b"", prover: b"", verifier: b"" });
        let verifier =
            |form| verify(&short, &short.record(), form, &y, context, &prover_share(&short, &x).unwrap()).unwrap();
        let prover = prove(&short, Form::Minimal, &x, context, &verifier_share(&short, &y).unwrap()).unwrap();
        assert!(verifier(Form::Minimal).is_proof(&prover.confirm) && !verifier(Form::Whole).is_proof(&prover.confirm));
    }

    #[test]
    fn numbers_are_reduced_modulo_the_order() {
        let order = hex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
        assert_eq!(scalar(&order), Scalar::ZERO);
        assert_eq!(scalar(&[&[0; 8][..], &order].concat()), Scalar::ZERO);
        assert_eq!(scalar(&[5]), Scalar::from(5_u64));
    }
}
