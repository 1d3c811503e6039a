//! The KLAP transport: a handshake that proves on both sides that the password is known, then signed AES-128-CBC.
//!
//! Owns the hashes ([`Hashes`], [`AuthHash`]), the keys of a session ([`Keys`]) and the client's side of both. Promises
//! that which hashes a plug holds, and of whose credentials, is found from one answer without a further request; that
//! secrets are compared in constant time; that a reply whose signature is wrong is never decrypted; and that no number is
//! used for two requests. Source: known answers in the tests below, which independent clients agree on.

use std::fmt;
use std::time::Duration;

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::session::{BYTES, Cookie, Credentials, Reply, Request, Seed, SessionError, Whose};

/// How long a plug keeps a session unless it says otherwise.
const TIMEOUT: Duration = Duration::from_secs(86_400);
/// How long before its end a session is renewed.
const RENEW_EARLY: Duration = Duration::from_secs(1_200);

/// Bytes of a seed.
pub const SEED: usize = 16;
/// Bytes of the answer to the first handshake: the plug's seed and its hash.
const ANSWER: usize = SEED + HASH;
const HASH: usize = 32;

/// What both sides have in place of the password. As good as the password: never shown, never stored.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthHash(Vec<u8>);

impl AuthHash {
    /// Of the first version, 16 bytes: md5(md5(user) + md5(password)).
    #[must_use]
    pub fn v1(credentials: &Credentials) -> Self {
        let both =
            Md5::new().chain_update(Md5::digest(credentials.user())).chain_update(Md5::digest(credentials.password()));
        Self(both.finalize().to_vec())
    }

    /// Of the second version, 32 bytes: sha256(sha1(user) + sha1(password)).
    #[must_use]
    pub fn v2(credentials: &Credentials) -> Self {
        let both = Sha256::new()
            .chain_update(Sha1::digest(credentials.user()))
            .chain_update(Sha1::digest(credentials.password()));
        Self(both.finalize().to_vec())
    }
}

impl fmt::Debug for AuthHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthHash(..)")
    }
}

/// Which hashes a plug uses. Firmware tells them apart badly: they are found from its first answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hashes {
    /// Second version, both in what is held and in the handshake.
    V2,
    /// First version in both.
    V1,
    /// The second version is held, the handshake is of the first.
    Mixed,
}

impl Hashes {
    /// All of them, the most frequent first.
    pub const ALL: [Self; 3] = [Self::V2, Self::V1, Self::Mixed];

    /// What a plug with these hashes holds for these credentials.
    #[must_use]
    pub fn auth(self, credentials: &Credentials) -> AuthHash {
        match self {
            Self::V1 => AuthHash::v1(credentials),
            Self::V2 | Self::Mixed => AuthHash::v2(credentials),
        }
    }

    /// The plug's proof, in its answer to the first handshake.
    #[must_use]
    pub fn server_proof(self, seeds: &Seeds, auth: &AuthHash) -> [u8; HASH] {
        let hash = Sha256::new().chain_update(seeds.local);
        let hash = if self == Self::V2 { hash.chain_update(seeds.remote) } else { hash };
        hash.chain_update(&auth.0).finalize().into()
    }

    /// The client's proof, the body of the second handshake.
    #[must_use]
    pub fn client_proof(self, seeds: &Seeds, auth: &AuthHash) -> [u8; HASH] {
        let hash = Sha256::new().chain_update(seeds.remote);
        let hash = if self == Self::V2 { hash.chain_update(seeds.local) } else { hash };
        hash.chain_update(&auth.0).finalize().into()
    }
}

/// The two random numbers of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    /// The client's.
    pub local: [u8; SEED],
    /// The plug's.
    pub remote: [u8; SEED],
}

/// The keys of one session, the same on both sides.
#[derive(Clone)]
pub struct Keys {
    key: [u8; 16],
    iv: [u8; 12],
    signature: [u8; 28],
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

impl Keys {
    /// The keys, and the number before that of the first request.
    #[must_use]
    pub fn derive(seeds: &Seeds, auth: &AuthHash) -> (Self, i32) {
        let derived = |label: &[u8]| -> [u8; HASH] {
            let hash = Sha256::new().chain_update(label).chain_update(seeds.local).chain_update(seeds.remote);
            hash.chain_update(&auth.0).finalize().into()
        };
        let iv = derived(b"iv");
        let keys = Self { key: first(&derived(b"lsk")), iv: first(&iv), signature: first(&derived(b"ldk")) };
        let [.., a, b, c, d] = iv;
        (keys, i32::from_be_bytes([a, b, c, d]))
    }

    /// A message: 32 bytes of signature, then the cipher text.
    #[must_use]
    pub fn seal(&self, number: i32, plain: &[u8]) -> Vec<u8> {
        let cipher = cbc::Encryptor::<aes::Aes128>::new(&self.key.into(), &self.iv(number).into());
        let cipher_text = cipher.encrypt_padded_vec::<Pkcs7>(plain);
        let mut message = self.sign(number, &cipher_text).to_vec();
        message.extend(cipher_text);
        message
    }

    /// The plain text of a message.
    ///
    /// # Errors
    /// [`SessionError::Garbage`] for what is no message, [`SessionError::BadSignature`] for one with other keys or another
    /// number.
    pub fn open(&self, number: i32, message: &[u8]) -> Result<Vec<u8>, SessionError> {
        let (signature, cipher_text) =
            message.split_at_checked(HASH).ok_or(SessionError::Garbage { what: "it is too short" })?;
        if cipher_text.is_empty() || cipher_text.len() % 16 != 0 {
            return Err(SessionError::Garbage { what: "its length is none that a message has" });
        }
        if !bool::from(self.sign(number, cipher_text).ct_eq(signature)) {
            return Err(SessionError::BadSignature);
        }
        let cipher = cbc::Decryptor::<aes::Aes128>::new(&self.key.into(), &self.iv(number).into());
        cipher.decrypt_padded_vec::<Pkcs7>(cipher_text).map_err(|_| SessionError::Garbage { what: "its padding" })
    }

    fn iv(&self, number: i32) -> [u8; 16] {
        let mut iv = [0; 16];
        for (to, from) in iv.iter_mut().zip(self.iv.iter().chain(&number.to_be_bytes())) {
            *to = *from;
        }
        iv
    }

    fn sign(&self, number: i32, cipher_text: &[u8]) -> [u8; HASH] {
        let hash = Sha256::new().chain_update(self.signature).chain_update(number.to_be_bytes());
        hash.chain_update(cipher_text).finalize().into()
    }
}

/// The first `N` of 32 bytes.
fn first<const N: usize>(bytes: &[u8; HASH]) -> [u8; N] {
    const { assert!(N <= HASH) };
    bytes.first_chunk().copied().unwrap_or([0; N])
}

/// A login under way.
#[derive(Debug)]
pub struct Login(State);

#[derive(Debug)]
enum State {
    /// The first handshake was sent.
    First { local: [u8; SEED], candidates: Vec<(Whose, Credentials)> },
    /// The second was.
    Second { session: Session },
}

/// What a login does next.
#[derive(Debug)]
pub enum Step {
    /// Send this and hear the reply.
    Send(Login, Request),
    /// It is over.
    Ready(Session),
}

impl Login {
    /// Sends the client's seed.
    #[must_use]
    pub fn start(account: Option<&Credentials>, seed: &Seed) -> (Self, Request) {
        let local = first(&seed.block(0));
        let mut candidates = Vec::new();
        if let Some(account) = account {
            candidates.push((Whose::Account, account.clone()));
            // Some versions of the vendor's app registered addresses in lower case.
            let lower = account.user().to_lowercase();
            if lower != account.user() {
                candidates.push((Whose::Account, Credentials::new(&lower, account.password())));
            }
        }
        candidates.extend(Whose::UNOWNED.into_iter().filter_map(|whose| Some((whose, whose.credentials()?))));
        let request = request("/app/handshake1".to_owned(), None, local.to_vec());
        (Self(State::First { local, candidates }), request)
    }

    /// What follows from the reply.
    ///
    /// # Errors
    /// [`SessionError`]: the login is over and has not led to a session.
    pub fn hear(self, reply: &Reply) -> Result<Step, SessionError> {
        match self.0 {
            State::First { local, candidates } => first_answer(local, &candidates, reply),
            State::Second { session } => match reply.status {
                200 => Ok(Step::Ready(session)),
                // The proof was right by the plug's own: so this is another client's login that came in between.
                403 => Err(SessionError::SessionGone),
                status => Err(SessionError::Status(status)),
            },
        }
    }
}

fn first_answer(local: [u8; SEED], candidates: &[(Whose, Credentials)], reply: &Reply) -> Result<Step, SessionError> {
    match reply.status {
        200 => {}
        403 => return Err(SessionError::OtherProtocol),
        status => return Err(SessionError::Status(status)),
    }
    let answer: &[u8; ANSWER] = reply
        .body
        .as_slice()
        .try_into()
        .map_err(|_| SessionError::Garbage { what: "the handshake has another length" })?;
    let (remote, proof) =
        answer.split_first_chunk().ok_or(SessionError::Garbage { what: "the handshake is too short" })?;
    let cookie = reply.cookie.as_ref().ok_or(SessionError::Garbage { what: "the handshake set no session cookie" })?;
    let seeds = Seeds { local, remote: *remote };
    for (whose, credentials) in candidates {
        for hashes in Hashes::ALL {
            let auth = hashes.auth(credentials);
            if bool::from(hashes.server_proof(&seeds, &auth).ct_eq(proof)) {
                let session = Session::new(&seeds, &auth, cookie, *whose);
                let body = hashes.client_proof(&seeds, &auth).to_vec();
                let request = request("/app/handshake2".to_owned(), Some(session.cookie.clone()), body);
                return Ok(Step::Send(Login(State::Second { session }), request));
            }
        }
    }
    let has_account = candidates.iter().any(|(whose, _)| *whose == Whose::Account);
    Err(if has_account { SessionError::WrongCredentials } else { SessionError::AccountNeeded })
}

fn request(path: String, cookie: Option<String>, body: Vec<u8>) -> Request {
    Request { path, content_type: BYTES, cookie, headers: &[], body }
}

/// An open session.
pub struct Session {
    keys: Keys,
    /// Of the request sealed last.
    number: i32,
    cookie: String,
    lifetime: Duration,
    whose: Whose,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:?})", self.whose)
    }
}

impl Session {
    fn new(seeds: &Seeds, auth: &AuthHash, cookie: &Cookie, whose: Whose) -> Self {
        let (keys, number) = Keys::derive(seeds, auth);
        let timeout = cookie.timeout().unwrap_or(TIMEOUT);
        // Of a short one half is used.
        let lifetime = timeout.saturating_sub(RENEW_EARLY.min(timeout / 2));
        Self { keys, number, cookie: cookie.pair().to_owned(), lifetime, whose }
    }

    /// See [`super::session::Session::seal`].
    pub fn seal(&mut self, plain: &[u8]) -> Request {
        self.number = self.number.wrapping_add(1);
        let path = format!("/app/request?seq={}", self.number);
        request(path, Some(self.cookie.clone()), self.keys.seal(self.number, plain))
    }

    /// See [`super::session::Session::open`].
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn open(&self, reply: &Reply) -> Result<Vec<u8>, SessionError> {
        match reply.status {
            200 => self.keys.open(self.number, &reply.body),
            403 => Err(SessionError::SessionGone),
            status => Err(SessionError::Status(status)),
        }
    }

    /// See [`super::session::Session::lifetime`].
    #[must_use]
    pub const fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// See [`super::session::Session::whose`].
    #[must_use]
    pub const fn whose(&self) -> Whose {
        self.whose
    }
}

#[cfg(test)]
mod tests {
    use super::super::hex;
    use super::*;
    use proptest::prelude::*;

    fn account() -> Credentials {
        Credentials::new("user@example.com", "hunter22")
    }

    fn seeds() -> Seeds {
        let local = std::array::from_fn(|i| u8::try_from(i).unwrap());
        Seeds { local, remote: local.map(|byte| byte + 16) }
    }

    struct Known {
        hashes: Hashes,
        auth: &'static str,
        server: &'static str,
        client: &'static str,
        key: &'static str,
        iv: &'static str,
        start: i32,
        signature: &'static str,
        request: &'static str,
        reply: &'static str,
        unowned: [&'static str; 3],
    }

    const KNOWN: [Known; 2] = [
        Known {
            hashes: Hashes::V1,
            auth: "89fb2f41a11a35ec2d005fc1739a8e67",
            server: "faa5457448981097b5a32dc49018232cfb92d21c465f3a1b100bac72d2b6a218",
            client: "ceac9467d8c7467040377ff4c5af3138510417cd43fa45c9feba5edb489df6bb",
            key: "6823449682954bbac4313fe399f719bb",
            iv: "d4845ed6de34ad8305f10057",
            start: -495_428_548,
            signature: "cea87addb40a4c0115693e55b0142623fc6dedaca2aa470ca6f88959",
            request: "120295a10ee14d49acdc76d03b37a18aeb54e1b6939594f3cf994ccb9ef2c06782759b9e910e2b2a058e83988bdf470418cc7455f6110b68b4f6e15d590ccb81",
            reply: "8698eedb32fdc5c1b5d5fba8a70d638abcff73827898cbcfdcb5b0731329c290edaf02e669c71ab17ee99b684908721583597817682fb28c26c74c6681414a41",
            unowned: [
                "74b751bdd208bc155ae2a6d4167cc44d",
                "a7317ea07dd83e3393fb702d9bf309a7",
                "5873dd45edd01f09c1ef2e7819369e8e",
            ],
        },
        Known {
            hashes: Hashes::V2,
            auth: "479d15981fd13291e55bf02da7db8a8cd30ca131b26206e633576e3a77c9225d",
            server: "94ebd22050a8b810739f92886cbe1e539146cda40734c479d61048bc3cc81790",
            client: "870cfb208393273333f80c825fc41f9813dfc6c4ee4dfc54cc88f1d5e9509d6d",
            key: "fb031494e96e01299a47502e257ec603",
            iv: "be58bdc0efe47ce2801d8389",
            start: -1_029_948_032,
            signature: "61b234f07c52a2f33b36c31d2f9656d5144e8cf923cd81cd37dab703",
            request: "8681783b2102ab36a723712ffdaa4176a854d4218649a936181bddc9af80c3ac6289c7726b0917fb196617ec1730c7490fa43e6d55e4dc2e4e22a663ea40713a",
            reply: "a8d22b50b8207d93679ff8aee7ecce95e57d9839fff219647db085c0d757f90c3d25e48610bf3c09e707fcf75423579be445f7ec015418b6e44c6ecdfd62050a",
            unowned: [
                "49fc4839a2733ffbf464337648f65dc411778d4c03ec82c5e4cccc682163fa64",
                "7d5ae9ac18f5bb37843a4577867dd4348d8dff26c4b261ebff1b74d88adc063b",
                "b8628ab91c74f531603f6d5b45e730e54c123a7247b8978272c03f1e13560cea",
            ],
        },
    ];

    #[test]
    fn known_answers() {
        for known in KNOWN {
            let auth = known.hashes.auth(&account());
            assert_eq!(auth.0, hex(known.auth));
            assert_eq!(known.hashes.server_proof(&seeds(), &auth).to_vec(), hex(known.server));
            assert_eq!(known.hashes.client_proof(&seeds(), &auth).to_vec(), hex(known.client));
            let (keys, start) = Keys::derive(&seeds(), &auth);
            assert_eq!(start, known.start);
            assert_eq!(keys.key.to_vec(), hex(known.key));
            assert_eq!(keys.iv.to_vec(), hex(known.iv));
            assert_eq!(keys.signature.to_vec(), hex(known.signature));
            let plain = br#"{"method":"get_device_info"}"#;
            assert_eq!(keys.seal(start + 1, plain), hex(known.request));
            assert_eq!(keys.open(start + 1, &hex(known.reply)).unwrap(), br#"{"error_code":0}"#);
            for (whose, wanted) in Whose::UNOWNED.into_iter().zip(known.unowned) {
                assert_eq!(known.hashes.auth(&whose.credentials().unwrap()).0, hex(wanted), "{whose:?}");
            }
        }
    }

    fn ok(body: Vec<u8>) -> Reply {
        Reply::new(200, [&b"TP_SESSIONID=ABC;TIMEOUT=86400"[..]], body)
    }

    /// The plug's first answer to a login, for these hashes and credentials.
    fn answer(request: &Request, hashes: Hashes, credentials: &Credentials) -> (Seeds, Reply) {
        let seeds = Seeds { local: request.body.as_slice().try_into().unwrap(), remote: [9; SEED] };
        let proof = hashes.server_proof(&seeds, &hashes.auth(credentials));
        (seeds, ok([&seeds.remote[..], &proof].concat()))
    }

    #[test]
    fn whose_hashes_a_plug_holds_is_found_from_one_answer() {
        let owned = (Whose::Account, account());
        let unowned = Whose::UNOWNED.map(|whose| (whose, whose.credentials().unwrap()));
        for (whose, credentials) in unowned.into_iter().chain([owned]) {
            for hashes in Hashes::ALL {
                let (login, request) = Login::start(Some(&account()), &Seed::new([1; 32]));
                assert_eq!((request.path.as_str(), request.body.len()), ("/app/handshake1", SEED));
                let (seeds, reply) = answer(&request, hashes, &credentials);
                let Step::Send(login, request) = login.hear(&reply).unwrap() else { panic!("a second handshake") };
                assert_eq!(request.body, hashes.client_proof(&seeds, &hashes.auth(&credentials)));
                assert_eq!(
                    (request.path.as_str(), request.cookie.as_deref()),
                    ("/app/handshake2", Some("TP_SESSIONID=ABC"))
                );
                let Step::Ready(mut session) = login.hear(&ok(Vec::new())).unwrap() else { panic!("a session") };
                assert_eq!((session.whose(), session.lifetime()), (whose, Duration::from_secs(85_200)));
                let (keys, start) = Keys::derive(&seeds, &hashes.auth(&credentials));
                let request = session.seal(b"{}");
                let number = start.wrapping_add(1);
                assert_eq!(request.path, format!("/app/request?seq={number}"));
                assert_eq!(keys.open(number, &request.body).unwrap(), b"{}");
                assert_eq!(session.open(&ok(keys.seal(number, b"yes"))).unwrap(), b"yes");
            }
        }
    }

    #[test]
    fn an_address_registered_in_lower_case_is_found() {
        let (login, request) =
            Login::start(Some(&Credentials::new("User@Example.com", "hunter22")), &Seed::new([1; 32]));
        let (_, reply) = answer(&request, Hashes::V2, &account());
        assert!(matches!(login.hear(&reply), Ok(Step::Send(..))));
    }

    #[test]
    fn what_a_login_fails_of_is_told_apart() {
        let start = |account: Option<&Credentials>| Login::start(account, &Seed::new([1; 32]));
        let hear = |account, reply: &Reply| start(account).0.hear(reply).err();
        let stranger = Credentials::new("other@example.com", "x");
        let (login, request) = start(Some(&account()));
        let (_, reply) = answer(&request, Hashes::V2, &stranger);
        assert_eq!(login.hear(&reply).err(), Some(SessionError::WrongCredentials));
        assert_eq!(hear(None, &reply), Some(SessionError::AccountNeeded));
        assert_eq!(hear(None, &Reply::new(403, [], Vec::new())), Some(SessionError::OtherProtocol));
        assert_eq!(hear(None, &Reply::new(500, [], Vec::new())), Some(SessionError::Status(500)));
        for body in [vec![], vec![0; 47], vec![0; 49]] {
            assert!(matches!(hear(None, &ok(body)), Some(SessionError::Garbage { .. })));
        }
        assert!(matches!(hear(None, &Reply::new(200, [], reply.body)), Some(SessionError::Garbage { .. })));
    }

    #[test]
    fn numbers_wrap_and_are_never_used_twice() {
        let (keys, _) = Keys::derive(&seeds(), &AuthHash::v2(&account()));
        let cookie = Cookie::parse(b"TP_SESSIONID=ABC;TIMEOUT=600").unwrap();
        let mut session = Session::new(&seeds(), &AuthHash::v2(&account()), &cookie, Whose::Account);
        assert_eq!(session.lifetime(), Duration::from_secs(300));
        session.number = i32::MAX - 1;
        assert_eq!(session.seal(b"").path, "/app/request?seq=2147483647");
        let request = session.seal(b"");
        assert_eq!(request.path, "/app/request?seq=-2147483648");
        assert_eq!(keys.open(i32::MIN, &request.body).unwrap(), b"");
        assert_eq!(session.open(&Reply::new(403, [], Vec::new())), Err(SessionError::SessionGone));
        assert_eq!(session.open(&ok(keys.seal(i32::MAX, b"late"))), Err(SessionError::BadSignature));
    }

    proptest! {
        #[test]
        fn open_undoes_seal_and_nothing_else(plain: Vec<u8>, number: i32, at: prop::sample::Index, flip in 1_u8..) {
            let (keys, _) = Keys::derive(&seeds(), &AuthHash::v1(&account()));
            let mut message = keys.seal(number, &plain);
            prop_assert_eq!(keys.open(number, &message).unwrap(), plain);
            prop_assert_eq!(keys.open(number.wrapping_add(1), &message), Err(SessionError::BadSignature));
            let at = at.index(message.len());
            message[at] ^= flip;
            prop_assert_eq!(keys.open(number, &message), Err(SessionError::BadSignature));
        }

        #[test]
        fn foreign_bytes_never_panic(body: Vec<u8>, status in prop::sample::select(vec![200_u16, 403, 500])) {
            let (keys, _) = Keys::derive(&seeds(), &AuthHash::v1(&account()));
            let _ = keys.open(1, &body);
            let _ = Login::start(None, &Seed::new([1; 32])).0.hear(&Reply::new(status, [], body));
        }
    }
}
