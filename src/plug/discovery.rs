//! Finding plugs by UDP: a probe goes to broadcast or known addresses, whoever is a plug answers.
//!
//! Owns the socket. Asks in two languages: on port 9999 a plug says all of itself, on 20002 and 20004 it says which
//! protocol it wants. Promises to believe no address but the datagram's own source, and to pass over what is no plug
//! without a word: anyone on the network can send here.

//! Finding plugs by UDP: a probe goes to broadcast or known addresses, whoever is a plug answers.
//!
//! Owns the socket. Promises to believe no address but the datagram's own source, and to pass over what is no plug
//! without a word: anyone on the network can send here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_net::UdpSocket;

use super::tdp::{self, Announcement, Way};
use super::{Place, PollError, iot, xor};
use crate::clock::{Clock, within};
use crate::limits;
use crate::reading::{Label, PlugFacts, Protocol};

/// A plug that answered, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The address to ask it at.
    pub address: SocketAddr,
    /// What it says of itself. Not more than MAC, model and protocol unless [`Manner::Introduced`].
    pub facts: PlugFacts,
    /// How it can be asked.
    pub manner: Manner,
}

/// How a plug that was heard of can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manner {
    /// In the open: it has told all of its facts.
    Introduced,
    /// In the protocol that it announces.
    Announced,
    /// Not at all: it wants a protocol that is not known here, by this name.
    Unsupported(Label),
}

impl Sighting {
    /// Where to ask it, and how.
    #[must_use]
    pub const fn place(&self) -> Place {
        Place { address: self.address, protocol: self.facts.protocol }
    }

    /// Why it cannot be asked, if it cannot.
    #[must_use]
    pub fn trouble(&self) -> Option<PollError> {
        match &self.manner {
            Manner::Unsupported(name) => Some(PollError::UnknownProtocol { name: name.clone() }),
            Manner::Introduced | Manner::Announced => None,
        }
    }
}

/// The ports that plugs listen on for probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Of plugs that answer in the open; their TCP port too.
    pub iot: u16,
    /// Of plugs that announce a protocol with a login.
    pub announcing: [u16; 2],
}

impl Ports {
    /// Those of real plugs.
    pub const REAL: Self = Self { iot: xor::PORT, announcing: tdp::PORTS };
}

/// Sends probes.
#[derive(Clone, Debug)]
pub struct Prober {
    socket: UdpSocket,
    ports: Ports,
}

/// Hears answers.
#[derive(Debug)]
pub struct Listener {
    socket: UdpSocket,
    ports: Ports,
    buffer: Vec<u8>,
}

/// Opens the socket that probes leave from and answers come to. `ports` are [`Ports::REAL`], others only in tests.
///
/// # Errors
/// When the system gives no socket or allows no broadcast.
pub async fn open(ports: Ports) -> io::Result<(Prober, Listener)> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.set_broadcast(true)?;
    let listener = Listener { socket: socket.clone(), ports, buffer: vec![0; limits::DATAGRAM] };
    Ok((Prober { socket, ports }, listener))
}

impl Prober {
    /// Asks whoever listens at `target`, one address or a broadcast one. The port that answers in the open comes first:
    /// a plug that answers there needs no login.
    ///
    /// # Errors
    /// When the network has no way there.
    pub async fn probe(&self, target: IpAddr) -> io::Result<()> {
        self.socket.send_to(&xor::encrypt(iot::SYSINFO), (target, self.ports.iot)).await?;
        for port in self.ports.announcing {
            self.socket.send_to(&tdp::probe(), (target, port)).await?;
        }
        Ok(())
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
            if let Ok(sighting) = sighting(datagram, from.ip(), self.ports) {
                return Ok(sighting);
            }
        }
    }
}

/// What a datagram from `from` says; decrypted in place where it is encrypted.
///
/// # Errors
/// [`PollError`] when it is not a plug's answer.
pub fn sighting(datagram: &mut [u8], from: IpAddr, ports: Ports) -> Result<Sighting, PollError> {
    // The first byte tells the two apart: a version number here, an encrypted brace there.
    if datagram.first() == Some(&ANNOUNCEMENT) {
        return Ok(announced(tdp::parse(datagram)?, from, ports));
    }
    xor::decrypt(datagram);
    let sysinfo = iot::parse(datagram)?.sysinfo;
    let facts = sysinfo.ok_or(PollError::Missing { what: "system.get_sysinfo" })?.facts;
    Ok(Sighting { address: SocketAddr::new(from, ports.iot), facts, manner: Manner::Introduced })
}

fn announced(Announcement { mac, model, way, .. }: Announcement, from: IpAddr, ports: Ports) -> Sighting {
    let (protocol, port, manner) = match way {
        // It speaks the open protocol, and says so here too.
        Way::Known { protocol: Protocol::IotXor, .. } => (Protocol::IotXor, ports.iot, Manner::Announced),
        Way::Known { protocol, port } => (protocol, port, Manner::Announced),
        Way::Unknown { name } => (Protocol::SmartTpap, 0, Manner::Unsupported(name)),
    };
    let facts = PlugFacts {
        mac,
        alias: Default::default(),
        model,
        hardware: Default::default(),
        firmware: Default::default(),
        protocol,
        has_meter: false,
        outlets: Vec::new(),
    };
    Sighting { address: SocketAddr::new(from, port), facts, manner }
}

/// What the announcements of ports 20002 and 20004 begin with: their version. An encrypted `{` is another byte.
const ANNOUNCEMENT: u8 = 2;

/// How long an answer that names a login is held back in [`locate`], in case the plug answers in the open as well.
const OPEN_FIRST: Duration = Duration::from_millis(300);

/// Where and how the plug at one address is to be asked, as it says itself. None when it says nothing in
/// [`limits::DISCOVERY_ROUND`].
///
/// # Errors
/// When no probe can be sent.
pub async fn locate(target: IpAddr, ports: Ports, clock: &dyn Clock) -> io::Result<Option<Sighting>> {
    let (prober, mut listener) = open(ports).await?;
    let start = clock.elapsed();
    for turn in 1..=limits::DISCOVERY_PROBES {
        prober.probe(target).await?;
        let until = start.saturating_add(limits::DISCOVERY_ROUND * turn / limits::DISCOVERY_PROBES);
        if let Some(first) = within(clock, until, listener.next_from(target)).await {
            let first = first?;
            if first.manner == Manner::Introduced {
                return Ok(Some(first));
            }
            let until = clock.elapsed().saturating_add(OPEN_FIRST);
            let open = async {
                loop {
                    match listener.next_from(target).await {
                        Ok(better) if better.manner != Manner::Introduced => {}
                        other => return other,
                    }
                }
            };
            return Ok(Some(within(clock, until, open).await.and_then(Result::ok).unwrap_or(first)));
        }
    }
    Ok(None)
}

impl Listener {
    async fn next_from(&mut self, target: IpAddr) -> io::Result<Sighting> {
        loop {
            let sighting = self.next().await?;
            if sighting.address.ip() == target {
                return Ok(sighting);
            }
        }
    }
}
