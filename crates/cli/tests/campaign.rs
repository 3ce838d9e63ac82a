//! Random faults of every kind, over all solvers, with an evaluation every epoch and a checkpoint at every step: workers and
//! coordinators are killed and stopped, device threads hang, the disk is full, links break. A few of them by default;
//! `NUMALIGN_TEST_FAULTS=2000` makes a campaign, whose table `--nocapture` shows. `NUMALIGN_TEST_SEED` chooses another one,
//! `NUMALIGN_TEST_FAULTS_PER_RUN` how many a run has before it is left alone. A full disk needs the right to mount a small one.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use common::proxy::Proxy;
use common::run::{bytes, kill, listening_address, newest_step, succeed};
use common::{Child, Folder};
use rustix::process::Signal;

/// What all runs have: 600 steps in five micro-batches.
const SETTINGS: &str = "--num-epochs 12 --num-batches 50 --checkpoint-every 1 --batch-size 20 --micro-batch-size 4 --lr 0.01 \
                        --eval-every 1 --eval-samples 40";

const SOLVERS: [(&str, &str); 3] = [
    ("adam", "--solver adam"),
    ("exact", "--solver exact --train-input-projection false"),
    ("alternate", "--solver alternate --solve-every 100 --solve-samples 200"),
];

/// Nobody is waited for long, and nobody loses patience.
const TIMES: &str = "--heartbeat 0.1 --dead-after 1 --stall-after 2 --join-debounce 0.05 --coordinator-wait 100";

/// Workers of a run.
const WORKERS: usize = 3;

/// Faults, unless the environment says how many.
const FEW: u64 = 24;

/// Faults of a run, one about every half second: the next often comes before the run has recovered from the one before.
/// Then the run is left alone, so that all solvers have their share.
const FAULTS_PER_RUN: u64 = 60;

/// Once the newest checkpoint is so many steps past the one at a fault, the run has recovered from it: one or two that were
/// committed before may still have been on their way.
const RECOVERED_AFTER: u64 = 3;

/// A run may take so long for each of its faults.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    WorkerKilled,
    WorkerStopped,
    DeviceFrozen,
    CoordinatorKilled,
    CoordinatorStopped,
    DiskFull,
    LinkCut,
    LinkHeld,
}

impl Fault {
    const ALL: [Fault; 8] = [
        Fault::WorkerKilled,
        Fault::WorkerStopped,
        Fault::DeviceFrozen,
        Fault::CoordinatorKilled,
        Fault::CoordinatorStopped,
        Fault::DiskFull,
        Fault::LinkCut,
        Fault::LinkHeld,
    ];
}

/// Random numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Something that is undone after a while.
enum Undo {
    Continue(i32),
    MakeRoom,
    LetGo(usize),
}

/// The run's folder `chk` on a disk of its own, where that is allowed.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn mount(folder: &Folder) -> Option<Self> {
        let path = folder.path().join("chk");
        std::fs::create_dir_all(&path).unwrap();
        // In a round of the solver a checkpoint has its sums, about a MiB: there is room for three and not for four.
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(&path).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self { path })
    }

    fn fill(&self) {
        // As much as there is room for.
        let _ = std::fs::write(self.path.join("filler"), vec![0; 8 << 20]);
    }

    fn make_room(&self) {
        let _ = std::fs::remove_file(self.path.join("filler"));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).output();
    }
}

/// A run and its processes; whoever ends is started again.
struct Run {
    coordinator: Child,
    workers: Vec<Child>,
    links: Vec<Proxy>,
    /// Of the coordinator.
    address: String,
    settings: String,
    undo: Vec<(Instant, Undo)>,
    disk: Option<SmallDisk>,
    folder: Folder,
}

impl Run {
    fn start(settings: &str) -> Self {
        let folder = Folder::new();
        let disk = SmallDisk::mount(&folder);
        let mut coordinator = coordinator(&folder, "127.0.0.1:0", settings);
        let address = listening_address(&mut coordinator);
        let links: Vec<Proxy> = (0..WORKERS).map(|_| Proxy::start(&address, |_| Box::new(|_| {}))).collect();
        let mut run = Self {
            coordinator,
            workers: Vec::new(),
            links,
            address,
            settings: settings.to_owned(),
            undo: Vec::new(),
            disk,
            folder,
        };
        for index in 0..WORKERS {
            let worker = run.worker(index, "slow=2");
            run.workers.push(worker);
        }
        run
    }

    fn worker(&self, index: usize, faults: &str) -> Child {
        let url = format!("http://{}", self.links[index].address);
        let arguments = ["worker", "--coordinator", &url];
        self.folder.spawn_env(&arguments, &[("NUMALIGN_INTERNAL_FAULTS", faults)])
    }

    /// The step of the newest checkpoint.
    fn newest_step(&self) -> u64 {
        newest_step(&self.folder.path().join("chk/run"))
    }

    /// Another coordinator in the place of the one that was killed.
    fn restart(&mut self) {
        let settings = format!("{} --resume auto", self.settings);
        self.coordinator = coordinator(&self.folder, &self.address, &settings);
    }

    /// Does something bad to a process; says whether there was one.
    fn hit(&mut self, fault: Fault, random: &mut Random) -> bool {
        let index = random.below(WORKERS as u64) as usize;
        let (worker, coordinator) = (self.workers[index].id() as i32, self.coordinator.id() as i32);
        let end = Instant::now() + Duration::from_millis(200 + random.below(2000));
        match fault {
            Fault::WorkerKilled => kill(worker, Signal::KILL),
            Fault::WorkerStopped => {
                kill(worker, Signal::STOP);
                self.undo.push((end, Undo::Continue(worker)));
            }
            Fault::DeviceFrozen => {
                let step = self.newest_step() + 10 + random.below(20);
                self.workers[index] = self.worker(index, &format!("slow=2,freeze={step}"));
            }
            Fault::CoordinatorKilled => {
                kill(coordinator, Signal::KILL);
                self.coordinator.wait_at_most(PATIENCE);
                self.restart();
            }
            Fault::CoordinatorStopped => {
                kill(coordinator, Signal::STOP);
                self.undo.push((end, Undo::Continue(coordinator)));
            }
            Fault::DiskFull => {
                let Some(disk) = &self.disk else { return false };
                disk.fill();
                self.undo.push((end, Undo::MakeRoom));
            }
            Fault::LinkCut => self.links[index].cut(),
            Fault::LinkHeld => {
                self.links[index].hold(true);
                self.undo.push((end, Undo::LetGo(index)));
            }
        }
        true
    }

    /// Undoes what is due, and starts again who has ended. True once the run is over.
    fn tend(&mut self) -> bool {
        for (time, undo) in std::mem::take(&mut self.undo) {
            if Instant::now() < time {
                self.undo.push((time, undo));
                continue;
            }
            match undo {
                Undo::Continue(pid) => kill(pid, Signal::CONT),
                Undo::MakeRoom => self.disk.iter().for_each(SmallDisk::make_room),
                Undo::LetGo(index) => self.links[index].hold(false),
            }
        }
        if self.coordinator.ended() {
            let output = self.coordinator.wait_at_most(PATIENCE);
            assert!(!output.stderr.contains("panicked"), "{output}");
            if output.status.success() {
                return true;
            }
            // With a full disk it cannot start.
            assert!(output.stderr.contains("No space left"), "{output}");
            std::thread::sleep(Duration::from_millis(100));
            self.restart();
        }
        for index in 0..self.workers.len() {
            if self.workers[index].ended() {
                assert!(!self.workers[index].stderr().contains("panicked"), "{}", self.workers[index].stderr());
                self.workers[index] = self.worker(index, "slow=2");
            }
        }
        false
    }
}

fn coordinator(folder: &Folder, address: &str, settings: &str) -> Child {
    let mut arguments = vec!["coordinator", "nn", "--listen", address, "--run-id", "run", "--workers", "3"];
    arguments.extend(SETTINGS.split_whitespace().chain(TIMES.split_whitespace()).chain(settings.split_whitespace()));
    folder.spawn(&arguments)
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What came of the faults of one kind in the runs of one solver.
#[derive(Default)]
struct Outcomes {
    /// Time to recovery of each.
    recovered: Vec<Duration>,
    /// The run's end came first.
    ended: u64,
}

impl Outcomes {
    fn count(&self) -> u64 {
        self.recovered.len() as u64 + self.ended
    }
}

type Table = BTreeMap<(Fault, &'static str), Outcomes>;

/// Faults that a run has not recovered from yet: when they came, and the newest checkpoint's step then.
#[derive(Default)]
struct Open(Vec<(Fault, Instant, u64)>);

impl Open {
    fn note(&mut self, newest: u64, solver: &'static str, table: &mut Table) {
        self.0.retain(|(fault, since, step)| {
            let recovered = newest >= step + RECOVERED_AFTER;
            if recovered {
                table.entry((*fault, solver)).or_default().recovered.push(since.elapsed());
            }
            !recovered
        });
    }

    fn end(self, solver: &'static str, table: &mut Table) {
        for (fault, ..) in self.0 {
            table.entry((fault, solver)).or_default().ended += 1;
        }
    }
}

/// A run of `solver` with so many faults, up to its end.
fn disturbed((solver, settings): (&'static str, &str), faults: u64, random: &mut Random, table: &mut Table) -> Run {
    let mut run = Run::start(settings);
    let (began, mut next) = (Instant::now(), Instant::now() + Duration::from_millis(500));
    let (mut open, mut done) = (Open::default(), 0);
    while !run.tend() {
        let newest = run.newest_step();
        open.note(newest, solver, table);
        let patience = PATIENCE + Duration::from_secs(5) * done as u32;
        assert!(began.elapsed() < patience, "{solver} is at {newest}: {}", run.coordinator.stderr());
        if Instant::now() >= next && done < faults {
            let fault = Fault::ALL[random.below(Fault::ALL.len() as u64) as usize];
            if run.hit(fault, random) {
                open.0.push((fault, Instant::now(), newest));
                done += 1;
            }
            next = Instant::now() + Duration::from_millis(100 + random.below(900));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    open.end(solver, table);
    run
}

#[allow(clippy::print_stdout, reason = "the table of a campaign")]
fn print(table: &mut Table, runs: &BTreeMap<&str, u64>) {
    println!("| fault | {} | recovered: median | longest |", SOLVERS.map(|(name, _)| name).join(" | "));
    println!("|---|---|---|---|---|---|");
    for fault in Fault::ALL {
        let counts = SOLVERS.map(|(name, _)| table.get(&(fault, name)).map_or(0, Outcomes::count).to_string());
        let all = table.iter().filter(|((of, _), _)| *of == fault).flat_map(|(_, outcomes)| &outcomes.recovered);
        let mut times: Vec<Duration> = all.copied().collect();
        times.sort();
        let shown =
            |time: Option<&Duration>| time.map_or("-".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
        let (median, longest) = (shown(times.get(times.len() / 2)), shown(times.last()));
        println!("| {fault:?} | {} | {median} | {longest} |", counts.join(" | "));
    }
    let runs = SOLVERS.map(|(name, _)| runs.get(name).copied().unwrap_or(0).to_string());
    println!("| runs, all with the right bytes and `verify` 0 | {} | | |", runs.join(" | "));
    let ended: u64 = table.values().map(|outcomes| outcomes.ended).sum();
    println!("{ended} of these faults came so late that the run had ended first.");
}

#[test]
#[allow(clippy::print_stdout, reason = "how far a campaign is")]
fn faults_of_every_kind_change_no_byte() {
    let wanted = number("NUMALIGN_TEST_FAULTS", FEW);
    let per_run = number("NUMALIGN_TEST_FAULTS_PER_RUN", FAULTS_PER_RUN).min(wanted.div_ceil(SOLVERS.len() as u64));
    let mut random = Random(number("NUMALIGN_TEST_SEED", 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let references = SOLVERS.map(|(_, settings)| {
        let folder = Folder::new();
        succeed(&folder, "nn", SETTINGS, &format!("{settings} --run-id run --workers 1"));
        bytes(&folder, "run")
    });
    let (mut table, mut runs) = (Table::new(), BTreeMap::new());
    let mut done = 0;
    for which in (0..SOLVERS.len()).cycle() {
        if done >= wanted {
            break;
        }
        let (solver, began) = (SOLVERS[which], Instant::now());
        let run = disturbed(solver, per_run.min(wanted - done), &mut random, &mut table);
        let name = solver.0;
        assert!(bytes(&run.folder, "run") == references[which], "{name}: {}", run.coordinator.stderr());
        let verified = run.folder.run(&["verify", "chk/run.safetensors"]);
        assert!(verified.status.success(), "{name}: {verified}");
        *runs.entry(name).or_insert(0u64) += 1;
        let before = done;
        done = table.values().map(Outcomes::count).sum();
        let (faults, seconds) = (done - before, began.elapsed().as_secs_f64());
        println!("{name}: {faults} faults, {seconds:.0} s, bytes equal, verify 0; {done} faults so far");
    }
    print(&mut table, &runs);
}
