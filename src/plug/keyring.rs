//! What opens plugs that want a login: the account, randomness, and a thread for arithmetic that takes long.
//!
//! Owns the account's credentials; nobody else holds them. Promises that nothing of them shows in `Debug`, and that what
//! would hold the executor is done on one thread of its own, which exists only once there was need for it.

use std::cell::OnceCell;
use std::fmt;
use std::io;
use std::thread;

use base64ct::{Base64, Encoding as _};
use smol::channel::{Sender, bounded};

#[cfg(feature = "aes-passthrough")]
use super::PollError;
#[cfg(feature = "aes-passthrough")]
use super::aes::RunKey;
use super::session::{Credentials, Seed};

type Job = Box<dyn FnOnce() + Send>;

/// Logins that may wait for the thread: as many as plugs are asked at once, and more wait for room.
const QUEUE: usize = 16;

/// Where 32 random bytes come from: the system in life, a counter in tests.
pub type Random = Box<dyn Fn() -> io::Result<[u8; 32]>>;

/// The keys to the plugs. One for the whole program.
pub struct Keyring {
    account: Option<Credentials>,
    random: Random,
    /// What this program calls itself to plugs that ask: base64 of 16 bytes.
    terminal: String,
    worker: OnceCell<Sender<Job>>,
    #[cfg(feature = "aes-passthrough")]
    run_key: OnceCell<RunKey>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.account.is_some() { "Keyring(an account)" } else { "Keyring(no account)" })
    }
}

impl Keyring {
    /// With this account, if there is one, and the system's randomness.
    #[must_use]
    pub fn new(account: Option<Credentials>) -> Self {
        Self::with(account, Box::new(system))
    }

    /// With randomness from elsewhere.
    #[must_use]
    pub fn with(account: Option<Credentials>, random: Random) -> Self {
        // Without randomness there is no login anyhow, and this is no secret.
        let name = random().map_or([0; 16], |bytes| {
            let (name, _) = bytes.split_at(16);
            name.try_into().unwrap_or_default()
        });
        Self {
            account,
            random,
            terminal: Base64::encode_string(&name),
            worker: OnceCell::new(),
            #[cfg(feature = "aes-passthrough")]
            run_key: OnceCell::new(),
        }
    }

    /// The account, if one is configured.
    #[must_use]
    pub const fn account(&self) -> Option<&Credentials> {
        self.account.as_ref()
    }

    /// The name by which plugs know this program: new in each run, the same while it lasts.
    #[must_use]
    pub fn terminal(&self) -> &str {
        &self.terminal
    }

    /// Randomness for one login.
    ///
    /// # Errors
    /// When the system has none.
    pub fn seed(&self) -> io::Result<Seed> {
        (self.random)().map(Seed::new)
    }

    /// The RSA key of this run. Made when it is first wanted.
    ///
    /// # Errors
    /// As [`Keyring::work`], or when no key can be made.
    #[cfg(feature = "aes-passthrough")]
    pub async fn run_key(&self) -> Result<RunKey, PollError> {
        let io = |error: io::Error| PollError::Io(error.kind());
        if let Some(key) = self.run_key.get() {
            return Ok(key.clone());
        }
        let seed = self.seed().map_err(io)?;
        let key = self.work(move || RunKey::generate(&seed)).await.map_err(io)??;
        // Two logins at once may have made one each: the first stays.
        Ok(self.run_key.get_or_init(|| key).clone())
    }

    /// What `job` returns, from a thread of its own.
    ///
    /// # Errors
    /// When the system gives no thread, or the job panicked.
    pub async fn work<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (answer, reply) = bounded(1);
        let job: Job = Box::new(move || {
            let _ = answer.try_send(job()); // nobody waits any more: the result has no taker
        });
        let gone = |_| io::Error::other("the thread for logins is gone");
        let worker = match self.worker.get() {
            Some(worker) => worker.clone(),
            None => {
                let worker = start()?;
                self.worker.get_or_init(|| worker).clone()
            }
        };
        worker.send(job).await.map_err(|_| gone(()))?;
        reply.recv().await.map_err(|_| gone(()))
    }
}

fn start() -> io::Result<Sender<Job>> {
    let (jobs, queue) = bounded::<Job>(QUEUE);
    thread::Builder::new().name("wattd-login".to_owned()).spawn(move || {
        while let Ok(job) = queue.recv_blocking() {
            job();
        }
    })?;
    Ok(jobs)
}

/// Randomness from the kernel, which at this point of a machine's life has enough of it.
fn system() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let got = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    if got == bytes.len() { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn randomness_is_new_each_time_and_nothing_secret_is_shown() {
        let keyring = Keyring::new(Some(Credentials::new("user@example.com", "hunter22")));
        assert_ne!(system().unwrap(), system().unwrap());
        assert_eq!(format!("{keyring:?}"), "Keyring(an account)");
    }

    #[test]
    fn what_takes_long_is_done_on_one_other_thread() {
        let keyring = Keyring::new(None);
        let ids: Vec<_> = (0..2).map(|_| smol::block_on(keyring.work(|| thread::current().id())).unwrap()).collect();
        assert!(ids[0] == ids[1] && ids[0] != thread::current().id());
    }
}
