//! Keeps a kernel's NBD device connected: `nbd-keep /dev/nbd0 EXPORT ADDRESS`, beside an `nbd-client` that
//! connected it.
//!
//! Tells the kernel that requests shall wait for a lost connection instead of failing; hears from it when one
//! is lost; connects again, as often as it takes, and hands the new socket over. The kernel then sends again
//! what had no answer. For guests in tests: Debian's `nbd-client` (3.24) cannot do this.

#![expect(clippy::print_stdout, reason = "the log of a tool in a guest")]

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use glidefs_tests::blocking_client::Client;
use glidefs_tests::guest::netlink::{self, Change, Family};
use glidefs_tests::server::wait_until;
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// After that the server is given up, and the guest's requests fail.
const SERVER_WAIT_MAX: Duration = Duration::from_secs(600);
/// Longer than any of the kernel's messages that are read here.
const MESSAGE_BYTES: usize = 8192;

/// Keeps an NBD device connected.
#[derive(Debug, Parser)]
struct Arguments {
    /// A device that nbd-client has connected.
    device: String,
    export: String,
    server: SocketAddr,
}

/// The kernel's side of a device.
struct Device {
    kernel: OwnedFd,
    family: Family,
    index: u32,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let number = arguments.device.strip_prefix("/dev/nbd");
    let index = number.and_then(|it| it.parse().ok());
    let kernel = connect_kernel(0)?;
    let family = netlink::family(&ask(&kernel, &netlink::ask_family())?)?;
    // Heard from here on, so that none is missed between now and the first wait.
    let events = connect_kernel(family.group_mask()?)?;
    let device = Device {
        kernel,
        family,
        index: index.with_context(|| format!("{} is no NBD device", arguments.device))?,
    };
    device.change(Change::DeadConnectionSeconds(SERVER_WAIT_MAX.as_secs()))?;
    println!("keeping {}", arguments.device);
    loop {
        let heard = receive(&events)?;
        if netlink::dead_link(family, &heard)? == Some(device.index) {
            device.connect_again(&arguments)?;
        }
    }
}

impl Device {
    fn change(&self, change: Change) -> Result<()> {
        let message = netlink::reconfigure(self.family, self.index, change);
        netlink::acknowledged(&ask(&self.kernel, &message)?)
    }

    fn connect_again(&self, arguments: &Arguments) -> Result<()> {
        println!("lost {}", arguments.device);
        let mut attempts = 0_u64;
        let mut last = Ok(());
        let is_back = wait_until(SERVER_WAIT_MAX, || {
            attempts += 1;
            last = self.hand_over(arguments);
            last.is_ok()
        });
        ensure!(is_back, "the server does not come back: {last:?}");
        println!("connected {} again, attempt {attempts}", arguments.device);
        Ok(())
    }

    fn hand_over(&self, arguments: &Arguments) -> Result<()> {
        let stream = TcpStream::connect(arguments.server)?;
        stream.set_nodelay(true)?;
        let (input, output) = (stream.try_clone()?, stream.try_clone()?);
        Client::over(Box::new(input), Box::new(output), &arguments.export)?;
        // The kernel takes a reference of its own: what is closed here stays open there.
        self.change(Change::Socket(u32::try_from(stream.as_raw_fd())?))
    }
}

fn connect_kernel(groups: u32) -> Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(GENERIC),
    )?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

fn ask(kernel: &OwnedFd, message: &[u8]) -> Result<Vec<u8>> {
    rustix::net::send(kernel, message, SendFlags::empty())?;
    receive(kernel)
}

fn receive(kernel: &OwnedFd) -> Result<Vec<u8>> {
    let mut buffer = vec![0; MESSAGE_BYTES];
    let (length, whole) = rustix::net::recv(kernel, buffer.as_mut_slice(), RecvFlags::TRUNC)?;
    ensure!(length == whole, "a message of {whole} bytes");
    buffer.truncate(length);
    Ok(buffer)
}
