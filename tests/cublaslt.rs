//! Which kernels a server trusts with its products, on the virtual GPU: cuBLASLt where it is right
//! and keeps rows apart, our own kernels where it does not, and the other one where either is found
//! to be wrong (`cargo xtask virtual-gpu` says how faults are made).

use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tests::data_dir;
use tests::golden::golden_paths;
use tests::program::{Program, binary};
use tests::told::{Told, complete};

const END_TIME_MAX: Duration = Duration::from_secs(10);
const EXIT_STARTUP: i32 = 2;
/// Of log-probabilities between two ways to round, as in `cuda_server`.
const LOGPROB_TOLERANCE: f64 = 0.3;
const PROMPTS: [&[u32]; 3] = [&[5, 17, 400, 3, 3, 8, 1000, 21, 7], &[1, 2, 3], &[700; 33]];
const NUM_TOKENS: usize = 6;
/// Of plain weights in bf16, from the lowest to the highest.
const OWN: [&str; 4] = [
    "linear_plain_bf16_m16",
    "linear_plain_bf16_m32",
    "linear_plain_bf16_m64",
    "linear_plain_bf16_m128",
];

/// A machine with two virtual GPUs of one name: what it finds out is kept in `folder`.
struct Machine {
    folder: tempfile::TempDir,
    faults: String,
    /// Where its driver lies, unless that is where the tests' own is.
    driver: Option<tempfile::TempDir>,
}

impl Machine {
    /// `None` where the tests run on no virtual GPU.
    fn new(faults: &str) -> Option<Machine> {
        let is_virtual = tests::gpu()?.name().contains("no hardware");
        let folder = tempfile::tempdir().expect("a folder");
        is_virtual.then(|| Machine { folder, faults: faults.to_string(), driver: None })
    }

    /// The same machine with the driver alone.
    fn without_cublaslt(mut self) -> Machine {
        let paths = std::env::var_os("LD_LIBRARY_PATH").expect("the virtual GPU is in it");
        let file = "libcuda.so.1";
        let found = std::env::split_paths(&paths).map(|folder| folder.join(file));
        let found = found.into_iter().find(|path| path.is_file()).expect("a driver");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::copy(found, folder.path().join(file)).expect("it can be copied");
        self.driver = Some(folder);
        self
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        let stderr = File::create(self.folder.path().join("stderr")).expect("a writable folder");
        command
            .args(args)
            .args(["--offline", "--download-dir"])
            .arg(self.folder.path())
            .env("VIRTUAL_GPU_DEVICES", "2")
            .env("VIRTUAL_GPU_FAULT", &self.faults)
            .env("VIRTUAL_GPU_REPORT", self.folder.path().join("gpu.json"))
            .stdout(Stdio::null())
            .stderr(stderr);
        if let Some(driver) = &self.driver {
            command.env("LD_LIBRARY_PATH", driver.path());
        }
        command
    }

    fn serve(&self, model: &Path, flags: &[&str]) -> Command {
        let mut command = self.command(&["serve", "--device", "cuda", "--kv-cache-memory", "8MiB"]);
        command
            .args(["--max-num-seqs", "4", "--max-model-len", "256", "--stall-timeout", "0"])
            .args(["--log-level", "warn"])
            .args(flags)
            .arg(model);
        command
    }

    /// What clients get who ask one after the other, and all at once.
    fn answers(&self, model: &Path, flags: &[&str]) -> Vec<Told> {
        let mut server = Program::start(&mut self.serve(model, flags));
        let ask = |prompt: &[u32]| complete(&server, prompt, NUM_TOKENS);
        let alone: Vec<Told> = PROMPTS.into_iter().map(ask).collect();
        let together: Vec<Told> = std::thread::scope(|scope| {
            let asked = PROMPTS.map(|prompt| scope.spawn(move || ask(prompt)));
            asked.into_iter().map(|thread| thread.join().expect("an answer")).collect()
        });
        assert_eq!(alone, together, "an answer depends on its neighbours");
        server.terminate();
        assert!(server.wait(END_TIME_MAX).success());
        alone
    }

    /// What `doctor` reports of the GPU; it must find it fit to serve.
    fn doctor(&self) -> Value {
        let json = self.folder.path().join("report.json");
        let json = json.to_str().expect("a path of this test");
        let doctor = self.command(&["doctor", "--gpus", "short", "--json", json]).status();
        assert!(doctor.expect("the binary starts").success(), "{}", self.stderr());
        read_json(Path::new(json))["gpus"][0].clone()
    }

    /// Launches of the kernels for plain weights by the last program.
    fn own_launches(&self) -> u64 {
        let report = read_json(&self.folder.path().join("gpu.json"));
        let launches = |name: &str| report["kernels"][name]["launches"].as_u64().unwrap_or(0);
        OWN.iter().map(|name| launches(name)).sum()
    }

    /// The only record.
    fn record_path(&self) -> PathBuf {
        let folder = self.folder.path().join("qualification");
        let mut files = folder.read_dir().expect("a folder");
        files.next().expect("a record").expect("it can be read").path()
    }

    fn switched_off(&self) -> Vec<String> {
        let record = read_json(&self.record_path());
        let list = record["switched_off"].as_array().expect("a list").clone();
        list.iter().map(|name| name.as_str().expect("a name").to_string()).collect()
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stderr")).expect("it was written")
    }

    /// Starts a server that must refuse to start. Gives the one line that says why.
    fn refusal(&self, model: &Path, flags: &[&str]) -> String {
        let status = self.serve(model, flags).args(["--port", "0"]).status();
        assert_eq!(status.expect("the binary starts").code(), Some(EXIT_STARTUP));
        let stderr = self.stderr();
        let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(lines.len(), 1, "one line says why:\n{stderr}");
        lines[0].to_string()
    }
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("it was written");
    serde_json::from_str(&text).expect("it is JSON")
}

/// A model whose queries, keys and values have biases.
fn with_biases() -> PathBuf {
    data_dir().join("models/qwen2-tied")
}

/// One that has none at all, where it is there.
fn without_biases() -> Option<PathBuf> {
    golden_paths("models", |name| name == "qwen3-tied").into_iter().next()
}

fn check_near(a: &[Told], b: &[Told]) {
    for (a, b) in a.iter().zip(b) {
        let steps = a.tokens.iter().zip(&b.tokens).zip(a.logprobs.iter().zip(&b.logprobs));
        for ((token, other), (x, y)) in steps {
            if token != other {
                break;
            }
            assert!((x - y).abs() < LOGPROB_TOLERANCE, "{x} is not near {y}");
        }
    }
}

#[test]
fn a_model_runs_through_cublaslt_where_it_is_right_and_through_our_kernels_where_it_is_gone() {
    let Some(machine) = Machine::new("") else { return };
    let model = with_biases();
    let own = machine.answers(&model, &[]);
    let launches = machine.own_launches();
    let record = read_json(&machine.record_path());
    assert!(record["cublaslt"].is_null(), "speed on a virtual GPU means nothing: {record}");
    let theirs = machine.answers(&model, &["--cuda-matmul", "cublaslt"]);
    check_near(&own, &theirs);
    // Queries, keys and values stay with our own kernels.
    assert!(machine.own_launches() < launches / 2, "{} of {launches}", machine.own_launches());
    let mut record = read_json(&machine.record_path());
    let shapes = record["cublaslt"]["shapes"].as_array_mut().expect("the model's shapes");
    let mut sizes: Vec<_> = shapes
        .iter()
        .map(|shape| ["out_features", "in_features"].map(|n| shape[n].as_u64().expect("a size")))
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [[128, 128], [128, 256], [256, 128], [1152, 128]]);
    for shape in shapes {
        assert!(shape["algorithms"].is_array() && shape["refused"].is_null(), "{shape}");
        assert_eq!(shape["is_faster"], false, "{shape}");
        // As if it had been timed on hardware.
        shape["is_faster"] = true.into();
    }
    std::fs::write(machine.record_path(), record.to_string()).expect("a writable folder");
    assert_eq!(machine.answers(&model, &[]), theirs, "the record says what is faster");
    assert_eq!(machine.answers(&model, &["--enforce-eager"]), theirs, "recorded or not");
    assert_eq!(machine.answers(&model, &["--cuda-matmul", "own"]), own);
    // An algorithm that the library does not know is no reason not to serve.
    let mut spoilt = record.clone();
    let shapes = spoilt["cublaslt"]["shapes"].as_array_mut().expect("as above");
    for shape in shapes {
        shape["algorithms"] = serde_json::json!(["7".repeat(128), "7".repeat(128)]);
    }
    std::fs::write(machine.record_path(), spoilt.to_string()).expect("a writable folder");
    assert_eq!(machine.answers(&model, &[]), own);
    assert!(machine.stderr().contains("the record's algorithm cannot be used"));
    std::fs::write(machine.record_path(), record.to_string()).expect("a writable folder");
    let two = machine.answers(&model, &["--tensor-parallel", "2", "--cuda-matmul", "cublaslt"]);
    check_near(&own, &two);
    let machine = machine.without_cublaslt();
    assert_eq!(machine.answers(&model, &[]), own);
    let stderr = machine.stderr();
    assert_eq!(stderr.matches("there is no libcublasLt").count(), 1, "{stderr}");
}

#[test]
fn cublaslt_is_not_taken_where_it_is_wrong_or_rows_depend_on_their_number() {
    for (fault, reason) in [
        ("cublaslt-wrong", "of the allowed distance from the reference"),
        ("cublaslt-batch", "has other bits among"),
    ] {
        let Some(machine) = Machine::new(fault) else { return };
        let gpu = machine.doctor();
        let cases = gpu["cases"].as_array().expect("cases");
        let wrong: Vec<&Value> = cases.iter().filter(|case| case["agrees"] != true).collect();
        let is_theirs = |case: &&Value| {
            case["kernel"].as_str().is_some_and(|kernel| kernel.starts_with("cublaslt_"))
        };
        assert!(!wrong.is_empty() && wrong.iter().all(is_theirs), "{wrong:#?}");
        assert!(fault == "cublaslt-wrong" || gpu.to_string().contains(reason), "{gpu}");
        assert_eq!(machine.switched_off(), ["cublaslt_bf16", "cublaslt_f16"]);
        let asked_for = machine.answers(&with_biases(), &["--cuda-matmul", "cublaslt"]);
        let stderr = machine.stderr();
        assert!(stderr.contains("cublaslt_bf16") && stderr.contains("switched off"), "{stderr}");
        assert_eq!(asked_for, machine.answers(&with_biases(), &["--cuda-matmul", "own"]));
    }
}

#[test]
fn a_wrong_kernel_is_switched_off_and_another_one_gives_the_same_answers() {
    let Some(well) = Machine::new("") else { return };
    let expected = well.answers(&with_biases(), &[]);
    let broken = Machine::new(&format!("bug:{}", OWN[0])).expect("as above");
    let gpu = broken.doctor();
    // All cases of that kernel and no other one.
    let is_it = |case: &Value| case["kernel"] == OWN[0];
    let cases = gpu["cases"].as_array().expect("cases");
    assert!(cases.iter().all(|case| (case["agrees"] == true) != is_it(case)), "{cases:#?}");
    assert!(cases.iter().any(is_it), "it was tried");
    assert_eq!(gpu["switched_off"], serde_json::json!([OWN[0]]));
    assert_eq!(broken.switched_off(), [OWN[0]]);
    // A server goes by the record, and says so.
    assert_eq!(broken.answers(&with_biases(), &[]), expected);
    let stderr = broken.stderr();
    assert!(stderr.contains(OWN[0]) && stderr.contains("switched off"), "{stderr}");
}

#[test]
fn where_all_of_our_kernels_are_wrong_cublaslt_takes_their_place_or_nothing_is_served() {
    let bugs = OWN.map(|kernel| format!("bug:{kernel}")).join(",");
    let Some(machine) = Machine::new(&bugs) else { return };
    // With biases there is no alternative.
    let line = machine.refusal(&with_biases(), &[]);
    assert!(OWN.iter().all(|kernel| line.contains(kernel)), "{line}");
    assert_eq!(machine.switched_off(), OWN);
    if let Some(model) = without_biases() {
        let well = Machine::new("").expect("as above");
        let expected = well.answers(&model, &["--cuda-matmul", "cublaslt"]);
        assert_eq!(machine.answers(&model, &[]), expected);
    }
    let alone = Machine::new(&bugs).expect("as above").without_cublaslt();
    let line = alone.refusal(&with_biases(), &[]);
    assert!(line.contains("nothing is served") && line.contains(OWN[0]), "{line}");
}

#[test]
fn a_wrong_kernel_without_an_alternative_keeps_a_server_from_starting() {
    let Some(machine) = Machine::new("bug:add_assign_f32") else { return };
    let line = machine.refusal(&with_biases(), &[]);
    assert!(line.contains("nothing is served") && line.contains("add in bf16"), "{line}");
    assert!(!machine.folder.path().join("qualification").exists(), "nothing is kept");
}
