//! A real Linux kernel as the client: its filesystem on our disk, while servers die and change below it.

use anyhow::{Context, Result, ensure};
use glidefs_tests::guest::{self, Contents, Disk, Guest, Kernel, SERVER, SERVER_PORT};
use glidefs_tests::server;
use glidefs_tests::site::Site;
use glidefs_tests::{guest::talk, tool};

/// After so many seconds the kernel sends a request again that was on its way when the server died.
const REQUEST_SECONDS: u32 = 10;
const KILLS: usize = 2;
/// Between two kills, at least: enough that requests are in flight all the time.
const FILES_BETWEEN: u32 = 20;

/// Files of random bytes, each synced; their checksums, taken before they are written, go to /run/sums.
/// The first one that fails is named in /run/failed and ends it.
const LOAD: &str = "\
n=0
while [ ! -e /run/stop ] && [ $n -lt 1500 ]; do
    n=$((n + 1))
    dd if=/dev/urandom of=/run/f$n bs=64k count=4
    if dd if=/run/f$n of=/mnt/f$n bs=64k conv=fsync; then
        (cd /run && sha256sum f$n) >>/run/sums
        rm /run/f$n
    else
        echo f$n >>/run/failed
        exit 1
    fi
done
touch /run/stopped
";
/// One checksum of all files, as they were meant and as they are.
const MEANT: &str = "sort /run/sums | sha256sum";
const FOUND: &str = "cd /mnt && sha256sum f* | sort | sha256sum";

#[test]
fn a_kernels_filesystem_survives_kill_9_and_moves_to_another_node() -> Result<()> {
    let tools = ["nbd-client", "mkfs.ext4", "e2fsck"];
    let Some(kernel) = kernel(&tools)? else {
        return Ok(());
    };
    let keep = server::built("nbd-keep")?;
    let contents = Contents {
        modules: vec!["nbd"],
        tools: tools.map(Into::into).into_iter().chain([keep]).collect(),
    };
    let mut site = Site::new()?;
    let mut guest = Guest::boot(&site.path("guest-0"), &kernel, &contents, &[])?;
    guest.dial(&site.server.unix())?;
    connect(&mut guest)?;
    guest.run(&format!(
        "nbd-keep /dev/nbd0 ext4 {SERVER}:{SERVER_PORT} >/run/keep.log 2>&1 &
        until [ -s /run/keep.log ]; do sleep 0.1; done"
    ))?;
    guest.run("mkfs.ext4 -q -F /dev/nbd0 && mount -t ext4 /dev/nbd0 /mnt")?;
    kill_under_load(&mut guest, &mut site)?;
    let lost = guest.run("cat /run/keep.log")?.matches("again").count();
    ensure!(lost >= KILLS, "the connection was lost {lost} times");
    let meant = guest.run(MEANT)?;
    guest.run("umount /mnt && e2fsck -f -n /dev/nbd0 && mount -t ext4 /dev/nbd0 /mnt")?;
    let found = guest.run(FOUND)?;
    ensure!(found == meant, "the same node reads something else");
    guest.run("cd / && umount /mnt && nbd-client -d /dev/nbd0")?;
    ensure_no_complaints(&mut guest)?;
    drop(guest);

    // Another node and another machine: only the store knows the files.
    let status = site.server.terminate()?;
    ensure!(status.success(), "SIGTERM: {status}");
    site.move_on()?;
    let mut guest = Guest::boot(&site.path("guest-1"), &kernel, &contents, &[])?;
    guest.dial(&site.server.unix())?;
    connect(&mut guest)?;
    guest.run("e2fsck -f -n /dev/nbd0 && mount -t ext4 /dev/nbd0 /mnt")?;
    let found = guest.run(FOUND)?;
    ensure!(found == meant, "another node reads something else");
    ensure_no_complaints(&mut guest)
}

#[test]
fn a_disk_of_qemu_stalls_while_its_server_is_dead_and_loses_nothing() -> Result<()> {
    let tools = ["mkfs.ext4", "e2fsck"];
    let Some(kernel) = kernel(&tools)? else {
        return Ok(());
    };
    let contents = Contents {
        modules: vec!["virtio_blk"],
        tools: tools.map(Into::into).to_vec(),
    };
    let mut site = Site::new()?;
    let disk = Disk {
        socket: site.server.socket.clone(),
        export: "ext4".to_owned(),
    };
    let mut guest = Guest::boot(&site.path("guest-0"), &kernel, &contents, &[disk])?;
    guest.run("mkfs.ext4 -q -F /dev/vda && mount -t ext4 -o discard /dev/vda /mnt")?;
    kill_under_load(&mut guest, &mut site)?;
    let meant = guest.run(MEANT)?;
    guest.run("umount /mnt && e2fsck -f -n /dev/vda && mount -t ext4 /dev/vda /mnt")?;
    let found = guest.run(FOUND)?;
    ensure!(found == meant, "what was written is not what is read");
    ensure_no_complaints(&mut guest)
}

/// Every `nbd-client` line of the README, as it stands there.
#[test]
fn the_readme_connects_a_kernel() -> Result<()> {
    let tools = ["nbd-client", "socat"];
    let Some(kernel) = kernel(&tools)? else {
        return Ok(());
    };
    let contents = Contents {
        modules: vec!["nbd"],
        tools: tools.map(Into::into).to_vec(),
    };
    let commands = talk::commands_in(include_str!("../../README.md"), "nbd-client");
    ensure!(!commands.is_empty(), "the README connects no kernel");
    let site = Site::new()?;
    let mut guest = Guest::boot(&site.path("guest-0"), &kernel, &contents, &[])?;
    guest.dial(&site.server.unix())?;
    // What the README takes for given: the server's socket on this machine, and sudo.
    guest.run(&format!(
        "mkdir -p /var/run
        printf '#!/bin/sh\\nexec \"$@\"\\n' >/tools/sudo && chmod +x /tools/sudo
        socat UNIX-LISTEN:/var/run/glidefs.sock,fork TCP:{SERVER}:{SERVER_PORT} >/run/socat.log 2>&1 &
        until [ -e /var/run/glidefs.sock ]; do sleep 0.1; done"
    ))?;
    for command in commands {
        guest.run(command)?;
        let size = guest.run("blockdev --getsize64 /dev/nbd0")?;
        ensure!(size == (1_u64 << 30).to_string(), "{command}: {size} bytes");
        guest.run(
            "dd if=/dev/urandom of=/run/piece bs=64k count=1
            dd if=/run/piece of=/dev/nbd0 bs=64k seek=3 conv=fsync
            echo 3 >/proc/sys/vm/drop_caches
            dd if=/dev/nbd0 of=/run/back bs=64k skip=3 count=1 && cmp /run/piece /run/back",
        )?;
        guest.run("nbd-client -d /dev/nbd0")?;
    }
    ensure_no_complaints(&mut guest)
}

/// None, with a word, where the test cannot run.
fn kernel(tools: &[&str]) -> Result<Option<Kernel>> {
    if !tool::are_here(&[&guest::TOOLS, tools].concat()) {
        return Ok(None);
    }
    Kernel::fetched()
}

fn connect(guest: &mut Guest) -> Result<()> {
    let options = format!("-N ext4 -b 4096 -t {REQUEST_SECONDS}");
    guest.run(&format!(
        "nbd-client {options} {SERVER} {SERVER_PORT} /dev/nbd0"
    ))?;
    Ok(())
}

/// Kills the server while the guest writes, and starts it again; the guest must write on.
fn kill_under_load(guest: &mut Guest, site: &mut Site) -> Result<()> {
    guest.run(&format!(
        "cat >/run/load <<'END'\n{LOAD}END\ntouch /run/sums\nsh /run/load >/run/load.log 2>&1 &"
    ))?;
    write_on(guest)?;
    for kill in 0..KILLS {
        site.server.kill()?;
        // The guest has time to meet a server that is not there; how long does not matter.
        guest.run("sleep 3")?;
        site.restart()?;
        write_on(guest)
            .with_context(|| format!("after kill {kill}\n{}", site.server.log_tail()))?;
    }
    guest.run("touch /run/stop; until [ -e /run/stopped ] || [ -e /run/failed ]; do sleep 0.1; done; ! cat /run/failed")?;
    Ok(())
}

/// Returns when more files have been written.
fn write_on(guest: &mut Guest) -> Result<()> {
    guest.run(&format!(
        "wanted=$(($(wc -l </run/sums) + {FILES_BETWEEN}))
        until [ $(wc -l </run/sums) -ge $wanted ]; do
            if [ -e /run/failed ]; then cat /run/failed /run/load.log; exit 1; fi
            sleep 0.1
        done"
    ))?;
    Ok(())
}

fn ensure_no_complaints(guest: &mut Guest) -> Result<()> {
    let complaints = guest.complaints()?;
    ensure!(
        complaints.is_empty(),
        "the kernel says {complaints:#?}\n{}",
        guest.logs()
    );
    Ok(())
}
