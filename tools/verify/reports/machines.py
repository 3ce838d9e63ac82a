"""Rows about shells, signals, clusters, networks, clocks and limits. Root can try all of them."""
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

from . import trial as module
from .trial import LONG, ROOT, SHORT, STEPS, Skipped, expect, row

EVERY_USER = 54321


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def log_of(trial, name="log"):
    path = trial / name
    return path.read_text(errors="replace") if path.exists() else ""


def begin(trial, args, env=None, shell='exec "$0" "$@" 2>log', **more):
    """A long run whose log is a file; waits until some epochs are over."""
    child = trial.start(args, env, shell, **more)
    trial.until("some epochs", lambda: "epoch    3/" in log_of(trial))
    return child


@row(4, "the reader of the log ends; Ctrl-C where tee writes the log")
def pipes(trial):
    reference = trial.train()
    for number in range(4):
        run = f"head{number}"
        trial.run(f"launch nn --run-id {run} {SHORT}",
                  shell='{ "$0" "$@" 2>&1; echo $? > code; } | head -3 >/dev/null; until [ -s code ]; do sleep 0.05; done')
        expect(log_of(trial, "code") == "0\n", f"exit {log_of(trial, 'code')}")
        expect((trial / f"chk/{run}.safetensors").read_bytes() == reference, "other bytes")
    lost = 0
    for number in range(20):
        run = f"tee{number}"
        (trial / "log").unlink(missing_ok=True)
        child = begin(trial, f"launch nn --run-id {run} {LONG}", shell='"$0" "$@" 2>&1 | tee log >/dev/null')
        os.killpg(child.pid, signal.SIGINT)
        trial.finish(child)
        deadline = time.monotonic() + 10
        while trial.newest(run) == 0 and time.monotonic() < deadline:
            time.sleep(0.1)
        lost += trial.newest(run) == 0
    expect(lost == 0, f"{lost} of 20 checkpoints lost")
    return "head: 4 of 4 runs end with 0 and the same bytes; Ctrl-C with tee: 20 of 20 checkpoints"


SERVICES = {"NUMALIGN_PORT": "tcp://10.0.0.1:7400", "NUMALIGN_SERVICE_HOST": "10.0.0.1",
            "NUMALIGN_SERVICE_PORT_GRPC": "7400", "NUMALIGN_PORT_7400_TCP_ADDR": "10.0.0.1",
            "NUMALIGN_WORKERS_PORT": "tcp://10.0.0.2:7400", "NUMALIGN_WORKERS_SERVICE_PORT": "7400"}


@row(5, "variables that Kubernetes injects for a Service called numalign or numalign-…")
def services(trial):
    expect(trial.train("with", env=SERVICES) == trial.train("without"), "other bytes")
    port = free_port()
    coordinator = trial.start(f"coordinator nn --run-id two --listen 127.0.0.1:{port} --workers 1 {STEPS}", SERVICES)
    address = f"http://127.0.0.1:{port}"
    trial.until("an answer", lambda: trial.run(f"status --coordinator {address}", env=SERVICES).code == 0)
    trial.ok(f"worker --coordinator {address}", env=SERVICES)
    expect(trial.finish(coordinator).code == 0, "the coordinator fails")
    trial.ok("eval --checkpoint chk/two.safetensors --count 10", env=SERVICES)
    near = trial.refused(f"launch nn {SHORT}", "did you mean", env={"NUMALIGN_BATCH_SIZ": "8"}, code=2)
    expect("enableServiceLinks: false" in (ROOT / "deploy/jobset.yaml").read_text(), "not in jobset.yaml")
    return f"launch, coordinator, worker, status, eval pass them over; jobset.yaml sets it; {near.err.splitlines()[0]}"


@row(24, "proxies in the environment")
def proxies(trial):
    names = ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
    dead = {name: "http://127.0.0.1:9" for name in names}
    expect(trial.train("dead", env=dead) == trial.train("none"), "other bytes")
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        proxy.settimeout(10)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://hub.invalid"}
        through = trial.start("hidden --model a/b --ids 1", hub | {"http_proxy": address})
        seen = proxy.accept()[0]
        first = seen.makefile().readline().strip()
        seen.close()
        through.kill()
        expect("hub.invalid" in first, first)
        around = trial.run("hidden --model a/b --ids 1", hub | {"http_proxy": address, "no_proxy": "hub.invalid"})
        expect(around.code == 1, around)
        proxy.settimeout(0.2)
        try:
            proxy.accept()
            expect(False, "no_proxy is not honoured")
        except TimeoutError:
            pass
    return f"gRPC on loopback ignores six dead ones; the hub goes through it ({first}), and around it with no_proxy"


@row(25, "IPv6, host names, no DNS")
def addresses(trial):
    name = socket.gethostname()
    pairs = [("127.0.0.1:{}", "http://127.0.0.1:{}"), ("127.0.0.1:{}", "http://localhost:{}"),
             ("[::1]:{}", "http://[::1]:{}"), ("[::]:{}", "http://[::1]:{}"), ("[::]:{}", "http://127.0.0.1:{}"),
             ("::1:{}", "http://[::1]:{}"), (":{}", "http://127.0.0.1:{}"), (":{}", "http://[::1]:{}"),
             ("localhost:{}", "http://localhost:{}"), ("0.0.0.0:{}", f"http://{name}:{{}}"),
             ("0.0.0.0:{}", "MASTER_ADDR=127.0.0.1"), ("[::1]:{}", "MASTER_ADDR=::1"), ("[::1]:{}", "MASTER_ADDR=[::1]")]
    told = []
    for listen, connect in pairs:
        port = free_port()
        coordinator = trial.start(["coordinator", "nn", "--run-id", f"p{port}", "--insecure", "--workers", "1",
                                   "--listen", listen.format(port), *STEPS.split()])
        env, where = {}, ["--coordinator", connect.format(port)]
        if connect.startswith("MASTER_ADDR="):
            env, where = {"MASTER_ADDR": connect.split("=", 1)[1], "MASTER_PORT": str(port)}, []
        worker = trial.run(["worker", *where], env=env | {"NUMALIGN_COORDINATOR_WAIT": "10"}, timeout=40)
        if worker.code != 0:
            coordinator.kill()
            told.append(f"{listen} ← {connect}: {worker.error or trial.finish(coordinator).error}")
        else:
            expect(trial.finish(coordinator).code == 0, (listen, connect))
    for address in ["fd00::2", "fe80::1%lo"]:
        env = {"MASTER_ADDR": address, "MASTER_PORT": "7400", "NUMALIGN_COORDINATOR_WAIT": "1"}
        gone = trial.run("worker", env=env, timeout=40)
        expect(gone.code in (1, 2) and "invalid" not in gone.err and "hint:" in gone.err, gone)
    nowhere = trial.refused("worker --coordinator http://no.such.host.invalid:7400", "hint:",
                            env={"NUMALIGN_COORDINATOR_WAIT": "1"})
    expect(not told, "; ".join(told))
    return f"{len(pairs)} pairs join; fd00::2 {trial.run('worker', env={**env, 'MASTER_ADDR': 'fd00::2'}).error[:80]}; " \
           f"%zone: {gone.error[:110]}; no DNS: {nowhere.error[:100]}"


@row(26, "two or four runs at once; a port in use")
def at_once(trial):
    first = begin(trial, f"launch nn --run-id same {LONG}")
    second = trial.run(f"launch nn --run-id same {SHORT}")
    expect(second.code == 1 and "chk/same" in second.err, second)
    first.send_signal(signal.SIGTERM)
    trial.finish(first)
    children = [trial.start(f"launch nn --run-id four{number} {SHORT}") for number in range(4)]
    for child in children:
        expect(trial.finish(child).code == 0, "one of four fails")
    files = {(trial / f"chk/four{number}.safetensors").read_bytes() for number in range(4)}
    expect(len(files) == 1, "other bytes")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        told = trial.refused(f"coordinator nn --listen 127.0.0.1:{busy.getsockname()[1]}", "another program uses the port")
    return f"same id: {second.error[:110]}; four others: same bytes; {told.error[:110]}"


@row(27, "newest checkpoints truncated, empty, a folder, .nfs files")
def damaged_checkpoints(trial):
    trial.train("run", more="--keep-checkpoints 10")
    whole = (trial / "chk/run.safetensors").read_bytes()
    (trial / "chk/run.safetensors").unlink()
    paths = sorted((trial / "chk/run").glob("step-*.safetensors"))
    expect(len(paths) >= 3, paths)
    half = paths[-1].read_bytes()
    paths[-1].write_bytes(half[:len(half) // 2])
    paths[-2].write_bytes(b"")
    (trial / "chk/run/step-00000040.safetensors").mkdir()
    (trial / "chk/run/.nfs000000000001").write_bytes(b"x")
    resumed = trial.ok(f"launch nn --run-id run {SHORT} --resume auto")
    expect((trial / "chk/run.safetensors").read_bytes() == whole, "other bytes")
    reasons = [line for line in resumed.err.splitlines() if "step-000000" in line]
    expect(len(reasons) >= 3, resumed)
    return f"passed over with {len(reasons)} reasons, same bytes at the end: {reasons[0][:120]}"


@row(28, "SIGTERM, SIGUSR1, SIGHUP, PID 1")
def signals(trial):
    said = []
    for number, (kind, code) in enumerate([(signal.SIGTERM, 130), (signal.SIGHUP, 130), (signal.SIGINT, 130)]):
        (trial / "log").unlink(missing_ok=True)
        child = begin(trial, f"launch nn --run-id s{number} {LONG}")
        child.send_signal(kind)
        expect(trial.finish(child).code == code, f"{kind}: exit {child.returncode}")
        expect(trial.newest(f"s{number}") > 0, f"{kind}: no checkpoint")
        said.append(f"{kind.name}: checkpoint, exit {code}")
    (trial / "log").unlink()
    child = begin(trial, f"launch nn --run-id usr {LONG}")
    child.send_signal(signal.SIGUSR1)
    trial.until("a checkpoint", lambda: trial.newest("usr") > 0)
    expect(child.poll() is None, "USR1 ends the run")
    child.send_signal(signal.SIGTERM)
    trial.finish(child)
    said.append("SIGUSR1: checkpoint, goes on")
    if os.geteuid() != 0:
        return "; ".join(said) + "; PID 1 needs root"
    (trial / "log").unlink()
    child = begin(trial, f"launch nn --run-id one {LONG}", shell='exec unshare -fp --kill-child "$0" "$@" 2>log')
    inner = subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(inner[0]), signal.SIGTERM)
    trial.finish(child)
    expect(trial.newest("one") > 0, "PID 1: no checkpoint")
    return "; ".join(said) + "; PID 1: checkpoint"


def mounted(trial, name, options):
    path = trial / name
    path.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True)
    if done.returncode != 0:
        raise Skipped(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    return path


@row(34, "full disk, read-only, ulimit -f")
def disks(trial):
    reference = trial.train("plain")
    shutil.rmtree(trial / "chk")
    path = mounted(trial, "chk", "size=64k")
    try:
        child = trial.start(f"launch nn {SHORT.replace('every 10', 'every 1')} --keep-checkpoints 30 --run-id full",
                            shell='exec "$0" "$@" 2>log')
        trial.until("it waits for room", lambda: "tries again until there is room" in log_of(trial))
        subprocess.run(["mount", "-o", "remount,size=4m", path], check=True)
        trial.finish(child)
        expect((path / "full.safetensors").read_bytes() == reference, "full disk: other bytes")
        subprocess.run(["mount", "-o", "remount,ro", path], check=True)
        read_only = trial.refused(f"launch nn {SHORT} --run-id ro", "Read-only file system")
    finally:
        subprocess.run(["umount", "-l", path], check=True)
    said = []
    for blocks in (0, 1, 8):
        shutil.rmtree(trial / "chk", ignore_errors=True)
        limited = trial.run(f"launch nn {SHORT} --run-id limited", shell=f'ulimit -f {blocks}; exec "$0" "$@"', timeout=60)
        expect(limited.code == 1 and "File too large" in limited.err, limited)
        expect("was killed" not in limited.err and "signal" not in limited.err, limited)
        said.append(f"-f {blocks}: {limited.error[:110]}")
    return f"full: told, waits for room, then exit {child.returncode} and the same bytes; {read_only.error[:90]}; " + "; ".join(said)


@row(35, "clock jumps of ±1 day, −1 h, year 2090, before 1970; TLS with skewed clocks")
def clocks(trial):
    shim = trial / "clock.so"
    source = ROOT / "crates/cli/tests/host/clock.c"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    reference, day = trial.train("plain"), 86400
    for number, (shift, delay) in enumerate([(day, 0), (-day, 1), (-3600, 1), (day, 1), (2_000_000_000, 0), (-1_500_000_000, 1)]):
        env = {"LD_PRELOAD": str(shim), "CLOCK_SHIFT": str(shift), "CLOCK_DELAY": str(delay)}
        expect(trial.train(f"shift{number}", env=env) == reference, f"{shift}: other bytes")
    env = {"LD_PRELOAD": str(shim), "CLOCK_SHIFT": "-2000000000"}
    early = trial.refused(f"launch nn --run-id early {SHORT}", "clock stands before 1970", "hint:", env=env, timeout=30)
    longer = SHORT.replace("--num-epochs 3", "--num-epochs 100")
    later = {"LD_PRELOAD": str(shim), "CLOCK_SHIFT": "-2000000000", "CLOCK_DELAY": "2"}
    files = []
    for run, shifted in (("later", later), ("undisturbed", {})):
        trial.ok(f"launch nn --run-id {run} {longer}", env=shifted)
        files.append((trial / f"chk/{run}.safetensors").read_bytes())
    expect(files[0] == files[1], "set back before 1970 during a run: other bytes")
    trial.ok("cert --out tls 127.0.0.1")
    for shift, joins in ((-3600, True), (-25 * 3600, False)):
        port = free_port()
        coordinator = trial.start(f"coordinator nn --run-id tls{port} --listen 127.0.0.1:{port} --insecure --workers 1 {STEPS}"
                                  " --tls-cert tls/coordinator.pem --tls-key tls/coordinator-key.pem")
        env = {"LD_PRELOAD": str(shim), "CLOCK_SHIFT": str(shift), "NUMALIGN_COORDINATOR_WAIT": "5s"}
        worker = trial.run(f"worker --coordinator https://127.0.0.1:{port} --tls-ca tls/ca.pem", env=env)
        coordinator.kill()
        expect((worker.code == 0) == joins and (joins or "valid" in worker.err), worker)
    return f"6 jumps: same bytes; before 1970: {early.error}; set so during a run: same bytes; " \
           f"TLS: −1 h joins, −25 h: {worker.error[:160]}"


@row(36, "memory cgroup of 300, 700, 1200 MiB")
def memory(trial):
    base = pathlib.Path("/sys/fs/cgroup/memory")
    group = base / f"numalign-report-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise Skipped(f"no memory cgroup can be made here: {error}") from None
    said = []
    try:
        for mib in (300, 700, 1200):
            (group / "memory.limit_in_bytes").write_text(str(mib << 20))
            start = time.monotonic()
            result = trial.run(["bench", "step", "--model", "synthetic:small", "--batch", "1", "--positions", "1",
                                "--steps", "2", "--device", "cpu", "--json"], timeout=300,
                               shell=f'echo $$ > {group}/cgroup.procs; exec "$0" "$@"')
            taken = time.monotonic() - start
            if result.code == 0:
                said.append(f"{mib} MiB: runs, peak {result.json['peak_rss_mib']} MiB")
            else:
                expect(result.code == 1 and "needs" in result.err and "hint:" in result.err, result)
                said.append(f"{mib} MiB: refused in {taken:.1f} s: {result.error[:150]}")
    finally:
        group.rmdir()
    return "; ".join(said)


def other_user(trial, script, args):
    """Runs a script in a folder of its own as a user without rights; `./numalign` is the program."""
    theirs = trial / "theirs"
    if not theirs.exists():
        os.chmod(trial.folder, 0o777)
        theirs.mkdir()
        os.chmod(theirs, 0o777)
        shutil.copy(module.PROGRAM, theirs / "numalign")
    env = {"NUMALIGN_COORDINATOR_WAIT": "3s"}
    return trial.run(args, env=env, shell=f'cd theirs && {script} exec ./numalign "$@"', user=EVERY_USER, group=EVERY_USER,
                     extra_groups=[], timeout=90)


@row(37, "1 CPU, ulimits, empty environment, no HOME, locales, Slurm's and torch's variables, odd paths, no loopback")
def limits(trial):
    reference = trial.train("plain")

    def same(run, **more):
        expect(trial.train(run, **more) == reference, f"{run}: other bytes")

    same("cpu", shell='exec taskset -c 0 "$0" "$@"')
    same("locale", env={"LC_ALL": "tr_TR.UTF-8", "LANG": "de_DE.ISO-8859-1"})
    same("slurm", env={"SLURM_JOB_ID": "7", "SLURM_PROCID": "3", "RANK": "1", "WORLD_SIZE": "8", "LOCAL_RANK": "0",
                       "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"})
    same("empty", shell='exec env -i "$0" "$@"')
    same("homeless", env={"HOME": "/nonexistent"})
    told = []
    for limit in ("-n 64", "-n 12", "-v 4000000", "-v 200000", "-s 256"):
        result = trial.run(f"launch nn --run-id u{limit.replace(' ', '')} {SHORT}", shell=f'ulimit {limit}; exec "$0" "$@"', timeout=90)
        expect(result.code in (0, 1), f"{limit}: {result}")
        told.append(f"{limit}: {'fine' if result.code == 0 else result.error[:90]}")
    deep = "ünï 空/" * 300
    (trial / deep).mkdir(parents=True)
    result = trial.run(f"launch nn --run-id x {SHORT}", shell=f'cd "{deep}" && exec "$0" "$@"')
    expect(result.code in (0, 1), result)
    told.append(f"path of {len((trial / deep).as_posix().encode())} bytes: {'fine' if result.code == 0 else result.error[:90]}")
    if os.geteuid() != 0:
        return "; ".join(told) + "; ulimit -u and a dead loopback need root"
    few = other_user(trial, "ulimit -u 1;", "worker --coordinator http://127.0.0.1:9")
    expect(few.code == 1 and "ulimit -u" in few.err, few)
    eight = other_user(trial, "ulimit -u 8;", f"launch nn {SHORT}")
    expect(eight.code == 1, eight)
    down = trial.refused("worker --coordinator http://127.0.0.1:7400", "unreachable", "gives up",
                         env={"NUMALIGN_COORDINATOR_WAIT": "5s"}, shell='exec unshare -rn "$0" "$@"', timeout=30)
    return "; ".join(told) + f"; -u 1: {few.error[:80]}; -u 8: {eight.error[:120]}; loopback down: {down.error[:100]}"


@row(38, "batch 1, 7, 10^6, 10^9, 200 workers")
def sizes(trial):
    told = []
    small = "--num-epochs 1 --num-batches 2 --no-eval"
    for size in (1, 7):
        trial.ok(f"launch nn --run-id b{size} --batch-size {size} {small}")
    start = time.monotonic()
    million = trial.run("launch nn --run-id million --batch-size 1000000 --num-epochs 1 --num-batches 1 --no-eval", timeout=900)
    expect(million.code in (0, 1), million)
    told.append(f"10^6: {'a step' if million.code == 0 else million.error[:100]} in {time.monotonic() - start:.0f} s")
    billion = trial.run(f"launch nn --run-id billion --batch-size 1000000000 {small}", timeout=100)
    expect(billion.code in (1, 2), billion)
    told.append(f"10^9: {billion.error[:130]}")
    many = trial.run(f"launch nn --run-id many --workers 200 --max-workers 200 --batch-size 200 --micro-batch-size 1 {small}", timeout=600)
    expect(many.code == 0, many)
    expect(trial.ok(f"launch nn --run-id few --workers 2 --batch-size 200 --micro-batch-size 1 {small}"), "")
    files = [(trial / f"chk/{run}.safetensors").read_bytes() for run in ("many", "few")]
    expect(files[0] == files[1], "200 workers: other bytes")
    return "1, 7: fine; " + "; ".join(told) + "; 200 workers: the bytes of 2"
