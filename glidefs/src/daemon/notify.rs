//! Tells a service manager (systemd, `Type=notify`) how far the server is.
//!
//! One datagram of text to the socket that it names. A manager that cannot be told is no reason to
//! stop serving: it is logged.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::config::Environment;

/// Whoever started us and wants to know; often nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Supervisor {
    socket: Option<String>,
}

impl Supervisor {
    pub(super) fn from(environment: &Environment) -> Self {
        Self {
            socket: environment.get("NOTIFY_SOCKET").map(str::to_owned),
        }
    }

    pub(super) fn ready(&self) {
        self.tell("READY=1\nSTATUS=serving exports\n");
    }

    /// Until `ready` is told again.
    pub(super) fn reloading(&self) {
        // So that a manager that sent the signal itself (`Type=notify-reload`) knows this from an earlier one.
        let now = monotonic_micros();
        self.tell(&format!(
            "RELOADING=1\nMONOTONIC_USEC={now}\nSTATUS=looking at the configuration\n"
        ));
    }

    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=draining to the object store\n");
    }

    fn tell(&self, text: &str) {
        let Some(socket) = &self.socket else {
            return;
        };
        if let Err(error) = send(socket, text) {
            tracing::warn!(%socket, %error, "the service manager cannot be told");
        }
    }
}

/// By the clock that the manager compares with.
fn monotonic_micros() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000)
        .saturating_add(nanos / 1000)
}

fn send(socket: &str, text: &str) -> io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    // It must never hold up a start: a full queue is an error here.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(text.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_that_listens_is_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bound");
        let variables = [("NOTIFY_SOCKET", path.to_str().expect("text"))];
        let supervisor = Supervisor::from(&variables.into_iter().collect());
        supervisor.ready();
        supervisor.reloading();
        supervisor.stopping();
        let mut text = [0; 200];
        let len = manager.recv(&mut text).expect("a datagram");
        assert!(text[..len].starts_with(b"READY=1\n"));
        let len = manager.recv(&mut text).expect("another");
        let told = String::from_utf8_lossy(&text[..len]).into_owned();
        let micros = told.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        let micros = micros.and_then(|rest| rest.lines().next());
        let micros = micros.and_then(|digits| digits.parse::<u64>().ok());
        assert!(micros.is_some_and(|micros| micros > 0), "{told}");
        let len = manager.recv(&mut text).expect("another");
        assert!(text[..len].starts_with(b"STOPPING=1\n"));
    }

    #[test]
    fn nobody_and_a_manager_that_is_gone_change_nothing() {
        Supervisor::default().ready();
        assert!(send("/nowhere/at/all", "READY=1").is_err());
        assert!(send("@glidefs-test-nobody", "READY=1").is_err());
    }
}
