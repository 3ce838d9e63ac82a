//! Ports and networks that the system withholds.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::common::{Folder, check, without_foreign_variables};

#[test]
fn a_port_of_root_is_told_with_a_higher_one() {
    let first_free = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if !rustix::process::geteuid().is_root() || first_free.trim().parse().is_ok_and(|port: u16| port <= 81) {
        eprintln!("skipped: it needs root, to become a user who may not have the port");
        return;
    }
    let folder = Folder::new();
    let program = folder.open_to_every_user();
    let mut command = Command::new(&program);
    let output = without_foreign_variables(&mut command)
        .args(["coordinator", "nn", "--listen", "127.0.0.1:81"])
        .uid(54_321)
        .gid(54_321)
        .current_dir(folder.path())
        .output()
        .expect("the binary");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for words in ["cannot listen on 127.0.0.1:81", "hint:", "below 1024", "7400"] {
        assert!(stderr.contains(words), "`{words}`: {stderr}");
    }
}

#[test]
fn a_network_that_is_down_is_said_with_the_time_after_which_a_worker_gives_up() {
    let is_possible = Command::new("unshare").args(["-rn", "true"]).output().is_ok_and(|ran| ran.status.success());
    if !is_possible {
        eprintln!("skipped: `unshare -rn` gives no network of our own here");
        return;
    }
    let folder = Folder::new();
    // In a new network even the loopback device is down.
    let script = "NUMALIGN_COORDINATOR_WAIT=6s exec unshare -rn \"$0\" \"$@\"";
    let output = folder.spawn_shell(script, &["worker", "--coordinator", "http://127.0.0.1:7400"]).wait();
    let said = ["no coordinator at http://127.0.0.1:7400", "unreachable", "trying again for 6 s", "gives up", "hint:"];
    check("no network", &output, 1, &said);
    let lines = output.stderr.lines().filter(|line| line.contains("trying again")).count();
    assert_eq!(lines, 2, "once at once, once when it lasts: {output}");
}
