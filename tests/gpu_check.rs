//! The GPU check, as an operator runs it: with nothing but the program and a model.

use std::path::Path;
use std::process::Command;
use tests::data_dir;
use tests::program::binary;

#[test]
fn the_gpu_check_succeeds_and_leaves_a_report() {
    if tests::gpu().is_none() {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/gpu_check.sh");
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report");
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("bound").port()
    };
    let output = Command::new("sh")
        .arg(script)
        .args([&binary(), &data_dir().join("models/qwen2-tied"), &report])
        .env("GPU_CHECK_QUICK", "1")
        .env("GPU_CHECK_PORT", port.to_string())
        .env("MONSOON_DOWNLOAD_DIR", folder.path())
        .output()
        .expect("a shell");
    let read = |name: &str| std::fs::read_to_string(report.join(name)).unwrap_or_default();
    let texts = ["doctor.txt", "serve.txt", "bench-quick.txt"].map(read).join("\n");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &texts;
    assert!(output.status.success(), "{said}");
    assert_eq!(read("result.txt"), "all steps succeeded\n");
    for name in ["doctor.json", "bench-quick.json"] {
        let json: Result<serde_json::Value, _> = serde_json::from_str(&read(name));
        assert!(json.is_ok(), "{name}: {}\n{said}", read(name));
    }
    assert!(read("machine.txt").contains("monsoon"), "{}", read("machine.txt"));
}
