//! systemd's side of the program: that it is ready, how it is, and that it still works.
//!
//! Owns the notification socket (sd_notify(3)). Promises never to wait: a message that systemd does not take at once is
//! dropped, and the next one comes soon. Without systemd nothing is sent.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::config::Unit;

/// The way to whoever started the program.
#[derive(Debug, Default)]
pub struct Supervisor {
    socket: Option<UnixDatagram>,
    /// How often it wants to hear that the program still works, if it does.
    pub watchdog: Option<Duration>,
}

impl Supervisor {
    /// The supervisor that `unit` names. A socket that cannot be had is said once: systemd will say the rest.
    #[must_use]
    pub fn of(unit: &Unit) -> Self {
        let connect = |name: &String| {
            connect(name).inspect_err(|error| log::warn!("systemd cannot be told anything: {name}: {error}")).ok()
        };
        Self { socket: unit.notify_socket.as_ref().and_then(connect), watchdog: unit.watchdog }
    }

    /// Whether anybody listens.
    #[must_use]
    pub const fn listens(&self) -> bool {
        self.socket.is_some()
    }

    /// The program does what it is for. May be said again.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// How the program is, for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}"));
    }

    /// The program still works: the next [`Supervisor::watchdog`] begins.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// The program is about to end.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            log::debug!("systemd did not take {message:?}: {error}");
        }
    }
}

fn connect(name: &str) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn systemd_hears_what_is_said_in_its_own_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let unit = Unit { notify_socket: Some(path.to_str().unwrap().to_owned()), watchdog: None };
        let supervisor = Supervisor::of(&unit);
        supervisor.ready("3 plugs");
        supervisor.alive();
        supervisor.stopping();
        assert_eq!(heard(&systemd), "READY=1\nSTATUS=3 plugs");
        assert_eq!((heard(&systemd), heard(&systemd)), ("WATCHDOG=1".to_owned(), "STOPPING=1".to_owned()));
    }

    #[test]
    fn an_abstract_socket_is_found_and_a_full_one_is_not_waited_for() {
        let name = format!("wattd-test-{}", std::process::id());
        let systemd = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let unit = Unit { notify_socket: Some(format!("@{name}")), watchdog: None };
        let supervisor = Supervisor::of(&unit);
        for _ in 0..10_000 {
            supervisor.alive(); // more than any queue holds
        }
        assert_eq!(heard(&systemd), "WATCHDOG=1");
    }

    #[test]
    fn without_systemd_nothing_is_sent_and_a_socket_that_is_gone_stops_nothing() {
        assert!(!Supervisor::default().listens());
        Supervisor::default().ready("");
        let gone = Unit { notify_socket: Some("/nonexistent/notify".to_owned()), watchdog: None };
        assert!(!Supervisor::of(&gone).listens());
    }
}
