//! Hosts as they are in service: a real systemd on each, the packages installed, three of them in one
//! cluster, and what happens to hosts: reboots, upgrades, programs that hang or crash.

mod service;
mod story;

use anyhow::ensure;
use tidegate_harness::cluster::control::processes_of;
use tidegate_harness::nspawn::BOOT;
use tidegate_harness::{Hosts, poll};

#[test]
fn hosts_boot_reboot_and_leave_nothing() {
    let told = (|| {
        let mut hosts = Hosts::boot(2)?;
        for host in hosts.iter() {
            let name = host.run(&["hostname"])?.ok()?;
            ensure!(name.stdout.trim() == host.name(), "{name}");
        }
        let first = hosts.host(0);
        first.write("/root/kept", b"as it was\n", 0o600)?;
        let boot = first.read("/proc/sys/kernel/random/boot_id")?;
        let line = "systemd-run --wait --pipe --property=DynamicUser=yes id -u";
        let seen = first.shell(line)?.ok()?;
        ensure!(seen.stdout.trim() != "0", "{seen}");
        first.reboot()?;
        ensure!(first.read("/root/kept")? == "as it was\n");
        ensure!(first.read("/proc/sys/kernel/random/boot_id")? != boot);
        // One reaches the other by its name.
        let line = "systemd-run --unit=echo socat TCP-LISTEN:80,fork EXEC:hostname";
        hosts.host(1).shell(line)?.ok()?;
        poll::until("an answer of h2", BOOT, || {
            let told = first.run(&["socat", "-", "TCP:h2:80"])?.ok()?;
            poll::holds(told.stdout == "h2\n", || told.to_string())
        })?;
        hosts.host_mut(1).switch_off()?;
        ensure!(hosts.host(1).run(&["true"]).is_err());
        hosts.host_mut(1).switch_on()?;
        hosts.host(1).is_up()?;
        let units = hosts.host(1).run(&["systemctl", "is-active", "echo"])?;
        ensure!(units.stdout.trim() == "inactive", "{units}");
        Ok(hosts.dir().to_owned())
    })();
    match told {
        Ok(dir) => {
            let left = processes_of(&dir);
            assert!(left.is_empty(), "{left:#?}");
            assert!(!dir.exists(), "{}", dir.display());
        }
        Err(error) => panic!("{error:?}"),
    }
}
