//! deploy/ holds what it promises: every command in it exists with its flags, its YAML fits the published schemas, its shell
//! and units are clean, the Dockerfile copies what is there, and the Slurm job really runs, is queued again and finishes.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::words::{Spoken, commands, commented_code};
use common::{Folder, check, run};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::Value;

mod common;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(name: &str) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Said although the test passes: the test runner keeps back what goes through `eprintln!`.
fn say(text: &str) {
    std::io::stderr().write_all(format!("\n{text}\n").as_bytes()).expect("stderr");
}

/// Whether a program is there to be started.
fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Every document of a YAML file, with `<<` merged.
fn yaml(name: &str) -> Vec<Value> {
    let text = read(name);
    let mut documents = Vec::new();
    for document in serde_yaml::Deserializer::from_str(&text) {
        let mut value = serde_yaml::Value::deserialize(document).unwrap_or_else(|error| panic!("{name}: {error}"));
        value.apply_merge().unwrap_or_else(|error| panic!("{name}: {error}"));
        documents.push(serde_json::to_value(value).unwrap_or_else(|error| panic!("{name}: {error}")));
    }
    assert!(!documents.is_empty(), "{name} is empty");
    documents
}

fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    list.iter().map(|item| item.as_str().unwrap_or_else(|| panic!("no text: {item}")).to_owned()).collect()
}

/// The containers of a JobSet, each with the name of its job.
fn containers(jobset: &Value) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for job in jobset["spec"]["replicatedJobs"].as_array().expect("jobs") {
        let name = job["name"].as_str().expect("a name").to_owned();
        for container in job["template"]["spec"]["template"]["spec"]["containers"].as_array().expect("containers") {
            found.push((name.clone(), container.clone()));
        }
    }
    found
}

/// Every `numalign …` of the folder: the arguments, and the file that has them.
fn all_commands() -> Vec<(&'static str, Vec<String>)> {
    let mut found = Vec::new();
    let mut add = |file: &'static str, list: Vec<Vec<String>>| {
        assert!(!list.is_empty(), "{file} has no numalign command: has the test lost its way?");
        found.extend(list.into_iter().map(|arguments| (file, arguments)));
    };
    add("deploy/slurm.sbatch", commands(&read("deploy/slurm.sbatch"), Spoken::Shell));
    for file in ["deploy/Dockerfile", "deploy/jobset.yaml", "deploy/systemd/numalign-coordinator.service"] {
        add(file, commands(&commented_code(&read(file)), Spoken::Shell));
    }
    for file in ["deploy/systemd/numalign-coordinator.service", "deploy/systemd/numalign-worker@.service"] {
        add(file, commands(&read(file), Spoken::Unit));
    }
    add("deploy/README.md", commands(&read("deploy/README.md"), Spoken::Markdown));
    let compose = &yaml("deploy/compose.yaml")[0];
    for service in ["coordinator", "worker"] {
        add("deploy/compose.yaml", vec![strings(&compose["services"][service]["command"])]);
    }
    let healthcheck = strings(&compose["services"]["coordinator"]["healthcheck"]["test"]);
    assert_eq!(healthcheck[..2], ["CMD", "numalign"]);
    add("deploy/compose.yaml", vec![healthcheck[2..].to_vec()]);
    for (_, container) in yaml("deploy/jobset.yaml").iter().filter(|one| one["kind"] == "JobSet").flat_map(containers) {
        add("deploy/jobset.yaml", vec![strings(&container["args"])]);
    }
    found
}

#[test]
fn every_command_and_flag_exists() {
    let folder = Folder::new();
    let all = all_commands();
    for (file, arguments) in &all {
        // What the shell puts in at run time cannot be judged here: "$@" holds further arguments, the rest is a value.
        let mut line: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| *word != "$@").collect();
        // Unknown flags before it are refused; it spares the run itself.
        line.push("--help");
        let output = folder.run(&line);
        assert!(output.status.success(), "{file}: numalign {arguments:?}: {output}");
        assert!(output.stdout.contains("Usage: numalign "), "{file}: numalign {arguments:?}: {output}");
    }
    for file in ["slurm.sbatch", "compose.yaml", "jobset.yaml"] {
        for role in ["coordinator", "worker"] {
            let runs = |(name, line): &(&str, Vec<String>)| name.ends_with(file) && line[0] == role;
            assert!(all.iter().any(runs), "deploy/{file} runs no {role}");
        }
    }
    let wrong = commands("numalign coordinator nn --listen 0.0.0.0:7400 --tls-certificate x &\n", Spoken::Shell);
    let mut line: Vec<&str> = wrong[0].iter().map(String::as_str).collect();
    line.push("--help");
    check("an unknown flag", &folder.run(&line), 2, &["--tls-certificate"]);
}

#[test]
fn what_listens_beyond_loopback_has_a_token() {
    let mut listeners = 0;
    for (file, arguments) in all_commands() {
        if !arguments.iter().any(|word| word == "--listen" || word.starts_with("--listen=")) {
            continue;
        }
        listeners += 1;
        let line = arguments.join(" ");
        assert!(!line.contains("--insecure"), "{file}: {line}");
        assert!(!line.contains("127.0.0.1"), "{file}: {line}");
        let by_environment = match file {
            "deploy/compose.yaml" => {
                let services = &yaml(file)[0]["services"];
                ["coordinator", "worker"].iter().all(|name| services[name]["environment"]["NUMALIGN_TOKEN"].is_string())
            }
            "deploy/jobset.yaml" => {
                yaml(file).iter().filter(|one| one["kind"] == "JobSet").flat_map(containers).all(|(_, container)| {
                    let entries = container["env"].as_array().cloned().unwrap_or_default();
                    entries.iter().any(|entry| {
                        entry["name"] == "NUMALIGN_TOKEN" && entry["valueFrom"]["secretKeyRef"]["name"].is_string()
                    })
                })
            }
            _ => false,
        };
        assert!(by_environment || line.contains("--token-file"), "{file}: {line}");
    }
    assert!(listeners >= 4, "{listeners} commands listen");
}

#[test]
fn configuration_files_and_variables_exist() {
    let folder = Folder::new();
    for (file, arguments) in all_commands() {
        let joined = arguments.join(" ").replace("--config=", "--config ");
        let Some(config) = joined.split("--config ").nth(1).and_then(|rest| rest.split(' ').next()) else {
            continue;
        };
        // The units' own file is the administrator's.
        if config != "/etc/numalign/run.yaml" {
            assert!(root().join(config).is_file(), "{file}: {config}");
        }
    }
    let config = root().join("config/quickstart.yaml");
    let config = config.to_str().expect("text");
    let mut checked = 0;
    for (_, container) in yaml("deploy/jobset.yaml").iter().filter(|one| one["kind"] == "JobSet").flat_map(containers) {
        for entry in container["env"].as_array().expect("env") {
            let name = entry["name"].as_str().expect("a name");
            let value = entry["value"].as_str().unwrap_or("from-a-secret");
            let output = folder.run_env(&["config", "check", config], &[(name, value)]);
            assert!(output.status.success(), "{name}={value}: {output}");
            checked += 1;
        }
    }
    assert_eq!(checked, 3);
    let output = folder.run_env(&["config", "check", config], &[("NUMALIGN_COORDINATOR_WAITS", "1s")]);
    check("an unknown variable", &output, 2, &["NUMALIGN_COORDINATOR_WAITS"]);
}

/// The schema's complaint about a document, if there is one.
fn complaint(schema: &str, document: &Value) -> Option<String> {
    let parsed: Value = serde_json::from_str(&read(&format!("deploy/schemas/{schema}"))).expect("JSON");
    let url = format!("http://schemas.invalid/{schema}");
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    compiler.add_resource(&url, parsed).unwrap_or_else(|error| panic!("{schema}: {error}"));
    let index = compiler.compile(&url, &mut schemas).unwrap_or_else(|error| panic!("{schema}: {error:#}"));
    schemas.validate(document, index).err().map(|error| format!("{error:#}"))
}

#[test]
fn yaml_fits_the_published_schemas() {
    for (file, schema) in [("compose.yaml", "compose-spec.json"), ("jobset.yaml", "jobset.json")] {
        for document in yaml(&format!("deploy/{file}")) {
            let kind = document["kind"].as_str().unwrap_or_default().to_owned();
            assert_eq!(complaint(schema, &document), None, "deploy/{file} {kind}");
        }
    }
}

#[test]
fn the_schemas_refuse_what_does_not_fit() {
    let compose = yaml("deploy/compose.yaml").remove(0);
    let jobset = yaml("deploy/jobset.yaml").remove(1);
    let pod = "/spec/replicatedJobs/0/template/spec/template/spec";
    let container = format!("{pod}/containers/0");
    let cases = [
        ("compose-spec.json", &compose, "/services/worker".to_owned(), "replicas", Value::from(2)),
        ("compose-spec.json", &compose, "/services/coordinator".to_owned(), "command", Value::from(7)),
        ("jobset.json", &jobset, "/spec".to_owned(), "replicated_jobs", Value::from("x")),
        ("jobset.json", &jobset, pod.to_owned(), "restartpolicy", Value::from("Never")),
        ("jobset.json", &jobset, format!("{container}/livenessProbe/grpc"), "port", Value::from("grpc")),
        ("jobset.json", &jobset, format!("{container}/resources/limits"), "memory", Value::from(true)),
        ("jobset.json", &jobset, container.clone(), "name", Value::Null),
    ];
    for (schema, document, place, key, value) in cases {
        let mut changed = document.clone();
        changed.pointer_mut(&place).unwrap_or_else(|| panic!("{place}"))[key] = value;
        assert!(complaint(schema, &changed).is_some(), "{schema} lets {place}/{key} pass");
    }
}

/// Numbers that stand in several places of the JobSet, and names that hang together.
#[test]
fn the_jobset_agrees_with_itself() {
    let jobset = yaml("deploy/jobset.yaml").remove(1);
    let workers = &jobset["spec"]["replicatedJobs"][1];
    let count = workers["template"]["spec"]["parallelism"].as_u64().expect("a number");
    assert_eq!(workers["template"]["spec"]["completions"].as_u64(), Some(count));
    let all = containers(&jobset);
    let (coordinator, worker) = (strings(&all[0].1["args"]), strings(&all[1].1["args"]));
    assert!(coordinator.contains(&format!("--workers={count}")), "{coordinator:?}");
    let name = jobset["metadata"]["name"].as_str().expect("a name");
    let host = format!("{name}-{}-0-0.{name}", all[0].0);
    assert!(worker.contains(&format!("--coordinator=https://{host}:7400")), "{worker:?}");
    assert!(read("deploy/jobset.yaml").contains(&format!("numalign cert --out tls {host}\n")));
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert_eq!(all[0].1[probe]["grpc"]["port"], all[0].1["ports"][0]["containerPort"], "{probe}");
    }
    // A Service called numalign-… would set NUMALIGN_…_PORT in every pod.
    for job in jobset["spec"]["replicatedJobs"].as_array().expect("jobs") {
        let pod = &job["template"]["spec"]["template"]["spec"];
        assert_eq!(pod["enableServiceLinks"], Value::Bool(false), "{}", job["name"]);
    }
}

#[test]
fn shell_is_clean() {
    let fakes = root().join("crates/cli/tests/fake-slurm");
    let mut scripts = vec![fakes.join("srun"), fakes.join("scontrol")];
    for script in ["deploy/slurm.sbatch", "deploy/netns-test.sh", "deploy/release.sh", "examples/resume.sh", ".ci/run"]
    {
        scripts.push(root().join(script));
    }
    let thorough = is_installed("shellcheck");
    if !thorough {
        say("shellcheck is not installed: the shell scripts are checked with `bash -n` alone");
    }
    for script in scripts {
        let mut command = Command::new(if thorough { "shellcheck" } else { "bash" });
        if !thorough {
            command.arg("-n");
        }
        let output = command.arg(&script).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", script.display());
    }
}

#[test]
fn units_are_clean() {
    if !is_installed("systemd-analyze") {
        return say("systemd-analyze is not installed: the units are not checked beyond their commands");
    }
    let folder = Folder::new();
    for (unit, instance) in [
        ("numalign-coordinator.service", "numalign-coordinator.service"),
        ("numalign-worker@.service", "numalign-worker@0.service"),
    ] {
        // It wants the program to be there.
        let text =
            read(&format!("deploy/systemd/{unit}")).replace("/usr/local/bin/numalign", env!("CARGO_BIN_EXE_numalign"));
        let path = folder.write(instance, text);
        let output = Command::new("systemd-analyze").arg("verify").arg(&path).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.trim().is_empty(), "{unit}: {said}");
    }
}

#[test]
fn the_dockerfile_copies_what_is_there() {
    let ignored = read("deploy/Dockerfile.dockerignore");
    let mut copied = 0;
    for line in read("deploy/Dockerfile").lines().filter(|line| line.starts_with("COPY ") && !line.contains("--from="))
    {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        for source in &words[..words.len() - 1] {
            assert!(root().join(source).exists(), "{line}: {source} is not there");
            assert!(ignored.lines().any(|kept| kept == format!("!{source}")), "{line}: {source} is ignored");
            copied += 1;
        }
    }
    assert_eq!(copied, 5);
}

/// deploy/slurm.sbatch under stand-ins for srun and scontrol; its whole process group ends with the test.
struct Job {
    child: std::process::Child,
}

impl Job {
    fn start(folder: &Folder, log: &str, port: u16, arguments: &str) -> Self {
        let programs = Path::new(env!("CARGO_BIN_EXE_numalign")).parent().expect("a folder");
        let fakes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake-slurm");
        let path = std::env::var("PATH").unwrap_or_default();
        let stderr = std::fs::File::create(folder.path().join(log)).expect("a log");
        let mut command = Command::new("bash");
        command.arg(root().join("deploy/slurm.sbatch")).args(arguments.split_whitespace()).current_dir(folder.path());
        command.env_clear().env("PATH", format!("{}:{}:{path}", fakes.display(), programs.display()));
        command.env("HF_HOME", folder.path().join("hf-home")).env("HF_HUB_OFFLINE", "1");
        for (name, value) in
            [("JOB_ID", "4711"), ("JOB_NODELIST", "node[1-2]"), ("NTASKS", "2"), ("CPUS_PER_TASK", "1")]
        {
            command.env(format!("SLURM_{name}"), value);
        }
        command.env("DEVICE", "cpu").env("PORT", port.to_string());
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        Self { child: command.spawn().expect("bash starts") }
    }

    fn warn(&self) {
        run::kill(self.child.id() as i32, Signal::USR1);
    }

    fn wait(mut self) -> Option<i32> {
        let until = Instant::now() + common::TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().expect("a process of ours") {
                return status.code();
            }
            assert!(Instant::now() < until, "the Slurm job did not end within {:?}", common::TIMEOUT);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.child.id() as i32) {
            // It has usually ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

#[test]
fn the_slurm_job_is_warned_queued_again_and_finishes_with_the_same_bytes() {
    let folder = Folder::new();
    let text = |name: &str| String::from_utf8_lossy(&folder.read(name)).into_owned();
    let settings = "--num-epochs 60 --num-batches 25 --batch-size 16 --micro-batch-size 4 --checkpoint-every 50";
    let arguments = format!("nn {settings} --run-id job");

    let job = Job::start(&folder, "first.log", free_port(), &arguments);
    let checkpoints = folder.path().join("chk/job");
    run::wait_for("the job's first checkpoint", || run::newest_step(&checkpoints) > 0);
    job.warn();
    assert_eq!(job.wait(), Some(0), "{}", text("first.log"));
    assert_eq!(text("requeued"), "4711\n", "{}", text("first.log"));
    assert!(text("first.log").contains("stopped at step"), "{}", text("first.log"));
    assert!(!folder.path().join("chk/job.safetensors").exists(), "it finished before the warning");
    let mode = std::fs::metadata(folder.path().join("token")).expect("the token").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    assert_eq!(Job::start(&folder, "second.log", free_port(), &arguments).wait(), Some(0), "{}", text("second.log"));
    assert!(text("second.log").contains("continuing chk/job/step-"), "{}", text("second.log"));
    assert!(text("second.log").contains("| 2 workers"), "{}", text("second.log"));
    assert_eq!(text("requeued"), "4711\n", "a finished job is not queued again");
    let leftovers: Vec<_> = folder.contents().into_iter().filter(|(path, _)| path.ends_with("ca-key.pem")).collect();
    assert!(leftovers.is_empty(), "the certificates stayed: {leftovers:?}");

    run::succeed(&folder, "nn", settings, "--workers 3 --run-id undisturbed");
    assert_eq!(run::bytes(&folder, "job"), run::bytes(&folder, "undisturbed"));
}

#[test]
fn a_slurm_job_that_cannot_work_ends_with_its_message() {
    let folder = Folder::new();
    let log = || String::from_utf8_lossy(&folder.read("log")).into_owned();
    assert_eq!(Job::start(&folder, "log", free_port(), "nn --batch-size none").wait(), Some(2), "{}", log());
    assert!(log().contains("batch_size"), "{}", log());

    std::fs::set_permissions(folder.path().join("token"), Permissions::from_mode(0o644)).expect("a mode");
    assert_eq!(Job::start(&folder, "log", free_port(), "nn").wait(), Some(1), "{}", log());
    assert!(log().contains("mode 644") && log().contains("chmod 600"), "{}", log());
    assert!(!folder.path().join("requeued").exists());
}
