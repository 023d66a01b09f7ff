//! Hosts: what starts on them, and how they go down.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::disk::Disk;
use super::process::Process;
use super::{Sim, SimWorld};
use crate::sync::oneshot;

/// A simulated machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId(pub(super) usize);

/// A simulated process; numbers are never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pid(pub(super) u32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a host goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// All its processes are killed; the kernel lives on.
    Process,
    /// The power goes: what was not durable is lost by the fault model of its disk.
    Power,
}

/// A machine and what it owns.
pub(super) struct Host {
    pub(super) name: String,
    pub(super) disk: Disk,
    /// The store cannot be reached from here.
    pub(super) store_outage: bool,
    wall_skew_ms: u64,
    /// Operations that may begin before the host crashes by itself.
    fuse: Option<(u64, Crash)>,
}

/// Wall clocks differ by up to this much.
const WALL_SKEW_MS_MAX: u64 = 2 * 3_600 * 1_000;
/// Monotonic clocks start within this much of each other.
const CLOCK_AHEAD_NS_MAX: u64 = 1_000_000_000_000;
/// Hosts have addresses in one network.
const HOSTS_MAX: usize = 250;
const FIRST_PID: u32 = 100;

/// Waits for the end of a process's first task: what it returned, or none if it was killed first.
#[derive(Debug)]
pub struct Call<T> {
    pid: Pid,
    result: oneshot::Receiver<T>,
}

impl<T> Call<T> {
    pub fn pid(&self) -> Pid {
        self.pid
    }
}

impl<T> Future for Call<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        Pin::new(&mut self.result).poll(cx).map(Result::ok)
    }
}

impl Sim {
    /// The host of this name; made where there is none.
    pub fn host(&self, name: &str) -> HostId {
        let mut hosts = self.shared.hosts.borrow_mut();
        if let Some(known) = hosts.iter().position(|host| host.name == name) {
            return HostId(known);
        }
        assert!(
            hosts.len() < HOSTS_MAX,
            "a simulation has at most {HOSTS_MAX} hosts"
        );
        let config = &self.shared.config;
        hosts.push(Host {
            name: name.to_owned(),
            disk: Disk::new(config.disk_bytes_max, config.disk_faults),
            store_outage: false,
            wall_skew_ms: self.chance(|chance| chance.below(WALL_SKEW_MS_MAX)),
            fuse: None,
        });
        HostId(hosts.len() - 1)
    }

    pub fn host_name(&self, host: HostId) -> String {
        self.with_host(host, |host| host.name.clone())
    }

    /// The address of a host for TCP.
    pub fn ip(&self, host: HostId) -> IpAddr {
        let last = u8::try_from(host.0 + 1).expect("the number of hosts is bounded");
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
    }

    /// Starts a process on the host.
    pub fn start<F>(&self, host: HostId, main: impl FnOnce(SimWorld) -> F) -> Pid
    where
        F: Future<Output = ()> + 'static,
    {
        let world = self.process(host);
        let pid = world.pid();
        let task = main(world.clone());
        world.process.spawn(task);
        pid
    }

    /// Starts a process on the host and waits for what `main` returns. None if it was killed first.
    /// The process lives on, with what it spawned.
    pub fn call<T, F>(&self, host: HostId, main: impl FnOnce(SimWorld) -> F) -> Call<T>
    where
        T: 'static,
        F: Future<Output = T> + 'static,
    {
        let (sender, result) = oneshot::channel();
        let world = self.process(host);
        let pid = world.pid();
        let task = main(world.clone());
        world.process.spawn(async move {
            // Nobody waits any more: fine.
            drop(sender.send(task.await));
        });
        Call { pid, result }
    }

    /// A process with no task yet. The driver may await this world's futures itself; once the
    /// process was killed they never finish.
    pub fn process(&self, host: HostId) -> SimWorld {
        let number = self.shared.next_pid.get();
        self.shared.next_pid.set(number + 1);
        let pid = Pid(FIRST_PID + number);
        let label = format!("{}#{pid}", self.host_name(host));
        let ahead = self.chance(|chance| chance.below(CLOCK_AHEAD_NS_MAX));
        let process = Rc::new(Process::new(pid, host, label, Duration::from_nanos(ahead)));
        self.trace_line(&process.label, format_args!("starts"));
        let mut processes = self.shared.processes.borrow_mut();
        processes.insert(pid, Rc::clone(&process));
        SimWorld {
            sim: self.clone(),
            process,
        }
    }

    pub fn is_alive(&self, pid: Pid) -> bool {
        self.shared.processes.borrow().contains_key(&pid)
    }

    /// True while any process of the host lives.
    pub fn is_up(&self, host: HostId) -> bool {
        let processes = self.shared.processes.borrow();
        processes.values().any(|process| process.host == host)
    }

    /// Stops all processes of a host where they are, as a frozen virtual machine. What they have in
    /// flight goes on.
    pub fn pause(&self, host: HostId) {
        self.trace_line(&self.host_name(host), format_args!("is paused"));
        self.each_process(host, |process| process.pause());
    }

    pub fn resume(&self, host: HostId) {
        self.trace_line(&self.host_name(host), format_args!("is resumed"));
        self.each_process(host, |process| process.resume());
    }

    /// Kills one process, as `kill -9` does.
    pub fn kill(&self, pid: Pid) {
        if self.shared.running.get() == Some(pid) {
            self.later(Duration::ZERO, move |sim| sim.kill(pid));
            return;
        }
        let process = self.shared.processes.borrow_mut().remove(&pid);
        let Some(process) = process else {
            return;
        };
        self.trace_line(&process.label, format_args!("is killed"));
        // Sockets first, from outside: also those whose handles the driver holds are closed.
        process.end();
        self.net_process_died(pid);
        self.disk_process_died(process.host, pid);
    }

    /// Takes a host down, now. Called from a task of that host, right after its step. Processes can
    /// be started again at once.
    pub fn crash(&self, host: HostId, how: Crash) {
        if self.is_running_on(host) {
            self.pause(host);
            self.later(Duration::ZERO, move |sim| sim.crash(host, how));
            return;
        }
        self.trace_line(&self.host_name(host), format_args!("crashes: {how:?}"));
        self.with_host(host, |host| host.fuse = None);
        if how == Crash::Power {
            self.net_power_cut(host);
            self.disk_power_cut(host);
        }
        let pids: Vec<_> = {
            let processes = self.shared.processes.borrow();
            let of_host = processes.values().filter(|process| process.host == host);
            of_host.map(|process| process.pid).collect()
        };
        for pid in pids {
            self.kill(pid);
        }
    }

    /// The host crashes by itself when `operations` more operations (of disk, network or store) have
    /// begun on it: [`Sim::is_up`] tells. A crash for any other reason calls it off.
    pub fn crash_after(&self, host: HostId, operations: u64, how: Crash) {
        self.with_host(host, |host| host.fuse = Some((operations, how)));
    }

    /// Every operation of a host begins here.
    pub(super) fn begin(&self, host: HostId) {
        let how = self.with_host(host, |host| match &mut host.fuse {
            Some((0, how)) => Some(*how),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        });
        if let Some(how) = how {
            self.with_host(host, |host| host.fuse = None);
            // No more steps of it: the crash is the next thing that happens.
            self.pause(host);
            self.later(Duration::ZERO, move |sim| sim.crash(host, how));
        }
    }

    pub(super) fn with_host<T>(&self, host: HostId, see: impl FnOnce(&mut Host) -> T) -> T {
        see(&mut self.shared.hosts.borrow_mut()[host.0])
    }

    pub(super) fn wall_skew_ms(&self, host: HostId) -> u64 {
        self.with_host(host, |host| host.wall_skew_ms)
    }

    fn each_process(&self, host: HostId, act: impl Fn(&Process)) {
        let processes = self.shared.processes.borrow();
        for process in processes.values().filter(|process| process.host == host) {
            act(process);
        }
    }

    fn is_running_on(&self, host: HostId) -> bool {
        let Some(pid) = self.shared.running.get() else {
            return false;
        };
        let processes = self.shared.processes.borrow();
        processes
            .get(&pid)
            .is_some_and(|process| process.host == host)
    }
}
