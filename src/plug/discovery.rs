//! Finding plugs by UDP: a probe goes to broadcast or known addresses, whoever is a plug answers.
//!
//! Owns the socket. Promises to believe no address but the datagram's own source, and to pass over what is no plug
//! without a word: anyone on the network can send here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use async_net::UdpSocket;

use super::{PollError, iot, xor};
use crate::limits;
use crate::reading::PlugFacts;

/// A plug that answered, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The address to ask it at.
    pub address: SocketAddr,
    /// What it says of itself.
    pub facts: PlugFacts,
}

/// Sends probes.
#[derive(Clone, Debug)]
pub struct Prober {
    socket: UdpSocket,
    port: u16,
}

/// Hears answers.
#[derive(Debug)]
pub struct Listener {
    socket: UdpSocket,
    port: u16,
    buffer: Vec<u8>,
}

/// Opens the socket that probes leave from and answers come to. `port` is the one that plugs listen on: [`xor::PORT`],
/// another only in tests.
///
/// # Errors
/// When the system gives no socket or allows no broadcast.
pub async fn open(port: u16) -> io::Result<(Prober, Listener)> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.set_broadcast(true)?;
    let listener = Listener { socket: socket.clone(), port, buffer: vec![0; limits::DATAGRAM] };
    Ok((Prober { socket, port }, listener))
}

impl Prober {
    /// Asks whoever listens at `target`, one address or a broadcast one.
    ///
    /// # Errors
    /// When the network has no way there.
    pub async fn probe(&self, target: IpAddr) -> io::Result<()> {
        self.socket.send_to(&xor::encrypt(iot::SYSINFO), (target, self.port)).await.map(drop)
    }
}

impl Listener {
    /// The next plug that answers. Waits for ever; the caller sets the deadline.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn next(&mut self) -> io::Result<Sighting> {
        loop {
            let (length, from) = match self.socket.recv_from(&mut self.buffer).await {
                // An answer "port unreachable" to an earlier probe is nothing to stop for.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                other => other?,
            };
            let datagram = self.buffer.get_mut(..length).unwrap_or_default();
            if let Ok(facts) = sighting(datagram) {
                return Ok(Sighting { address: SocketAddr::new(from.ip(), self.port), facts });
            }
        }
    }
}

/// What a datagram says, decrypted in place.
///
/// # Errors
/// [`PollError`] when it is not a plug's answer.
pub fn sighting(datagram: &mut [u8]) -> Result<PlugFacts, PollError> {
    xor::decrypt(datagram);
    let sysinfo = iot::parse(datagram)?.sysinfo;
    Ok(sysinfo.ok_or(PollError::Missing { what: "system.get_sysinfo" })?.facts)
}
