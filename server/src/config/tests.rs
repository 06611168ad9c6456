use super::*;
use std::io::Write;

fn env(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

fn parse_with(line: &str, env: &Environment) -> Result<Command, ConfigError> {
    parse(["monsoon"].into_iter().chain(line.split_whitespace()).map(OsString::from), env)
}

fn serve(line: &str, env: &Environment) -> Result<ServeConfig, ConfigError> {
    match parse_with(&format!("serve {line}"), env)? {
        Command::Serve(config) => Ok(*config),
        other => panic!("not serve: {other:?}"),
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

#[test]
fn defaults_are_those_of_the_help() {
    let config = serve("", &env(&[("HOME", "/home/someone")])).expect("valid");
    assert_eq!((config.listen.host.to_string(), config.listen.port), ("127.0.0.1".into(), 8000));
    assert_eq!(config.compute.device, DeviceChoice::Auto);
    assert_eq!(config.cache.block_size, 16);
    assert_eq!(config.listen.body_bytes_max, 16 << 20);
    assert_eq!(config.limits.max_num_seqs, 64);
    assert_eq!(config.hub.cache_dir, Path::new("/home/someone/.cache/monsoon"));
    assert!(config.model.is_none() && config.listen.api_keys.is_empty());
}

#[test]
fn wrong_values_are_refused_with_flag_and_allowed_range() {
    for (line, words) in [
        ("--port 70000", &["--port", "70000", "65535"][..]),
        ("--host nowhere", &["--host", "127.0.0.1"]),
        ("--device tpu", &["--device", "auto, cpu, reference, cuda"]),
        ("--device cuda", &["--device", "cuda is not available"]),
        ("--max-num-seqs 0", &["--max-num-seqs", "1..=4096"]),
        ("--max-num-seqs 512 --max-num-batched-tokens 256", &["--max-num-batched-tokens", "512"]),
        ("--max-model-len 0", &["--max-model-len", "1..=16777216"]),
        ("--kv-cache-memory much", &["--kv-cache-memory", "GiB"]),
        ("--kv-cache-dtype f8", &["--kv-cache-dtype", "auto, bf16, f16, f32"]),
        ("--device reference --kv-cache-dtype f16", &["--kv-cache-dtype: f16 is", "f32"]),
        ("--device reference --kv-cache-dtype bf16", &["--kv-cache-dtype: bf16 is", "f32"]),
        ("--block-size 24", &["--block-size", "16, 32, 64, 128"]),
        ("--tensor-parallel 0", &["--tensor-parallel-size", "1..=1024"]),
        ("--threads 1000", &["--threads", "1..=256"]),
        ("--cpu-pin maybe", &["--cpu-pin", "auto, on, off"]),
        ("--scheduling-policy random", &["--scheduling-policy", "fcfs, priority"]),
        ("--kv-memory-fraction 1.5", &["--kv-memory-fraction", "at most 1"]),
        ("--timing 0 --tensor-parallel 2", &["--timing", "--tensor-parallel-size 2"]),
        ("--timing 0 --device cpu", &["--timing", "--device", "cannot be used with"]),
        ("--timing no-such.toml", &["no-such.toml"]),
        ("--stall-timeout 4000", &["--stall-timeout", "0..=3600"]),
        ("--overlap maybe", &["--overlap", "auto, on, off"]),
        ("--max-waiting-requests 0", &["--max-waiting-requests", "1..=1000000"]),
        ("--max-waiting-tokens x", &["--max-waiting-tokens", "invalid digit"]),
        ("--tokenizer-threads 65", &["--tokenizer-threads", "1..=64"]),
        ("--max-body-bytes 1", &["--max-body-bytes", "1KiB..=1GiB"]),
        ("--drain-timeout 86401", &["--drain-timeout", "0..=86400"]),
        ("--log-level loud", &["--log-level", "error, warn, info"]),
        ("--log-format xml", &["--log-format", "text, json"]),
        ("--hub other", &["--hub", "auto, huggingface, modelscope"]),
        ("--api-key-file /no/such/file", &["/no/such/file"]),
        ("--chat-template /no/such/file", &["/no/such/file"]),
        ("--config /no/such/file", &["/no/such/file"]),
        ("--max-num-sequences 3", &["--max-num-sequences", "--max-num-seqs"]),
    ] {
        let error = serve(line, &env(&[])).expect_err(line).to_string();
        for word in words {
            assert!(error.contains(word), "{line}: {word:?} is not in {error}");
        }
    }
}

#[test]
fn wrong_values_of_the_environment_name_their_variable() {
    for (name, value, words) in [
        ("MONSOON_PORT", "tcp://10.0.0.1:80", &["MONSOON_PORT"][..]),
        ("MONSOON_MAX_NUM_SEQS", "0", &["MONSOON_MAX_NUM_SEQS", "1..=4096"]),
        ("MONSOON_OFFLINE", "perhaps", &["MONSOON_OFFLINE", "true, false"]),
        ("MONSOON_DEVICE", "tpu", &["MONSOON_DEVICE", "auto, cpu, reference, cuda"]),
        ("HF_ENDPOINT", "ftp://x", &["HF_ENDPOINT", "http"]),
        ("HF_TOKEN", "two words", &["HF_TOKEN", "printable"]),
    ] {
        let error = serve("", &env(&[(name, value)])).expect_err(name).to_string();
        for word in words {
            assert!(error.contains(word), "{name}: {word:?} is not in {error}");
        }
        assert!(!error.contains("two words"), "a secret in {error}");
    }
}

#[test]
fn every_flag_of_serve_is_also_a_variable_and_a_key() {
    let command = args::command();
    let serve_command = command.find_subcommand("serve").expect("exists");
    for arg in serve_command.get_arguments() {
        let Some(long) = arg.get_long().filter(|l| !["config", "help"].contains(l)) else {
            continue;
        };
        // A text no flag takes shows that the value was looked at; texts that some take are tried
        // with a list of lists.
        let variable = format!("MONSOON_{}", long.replace('-', "_").to_uppercase());
        let by_file = file(&format!("{long} = [[1]]\n"));
        let error = serve(&format!("--config {}", by_file.path().display()), &env(&[]));
        assert!(error.expect_err(long).to_string().contains(long), "{long}");
        let help = layers::with_layers(args::command(), &[], &env(&[])).expect("no layers");
        let help = help.find_subcommand("serve").expect("exists").clone().render_long_help();
        let help = help.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(&format!("[env: {variable}]")), "{variable}");
    }
}

#[test]
fn command_line_wins_over_environment_over_file_over_default() {
    let config_file = file("port = 1000\nmax-num-seqs = 7\nblock_size = 32\noffline = true\n");
    let line = format!("--config {} --port 3000", config_file.path().display());
    let variables = env(&[("MONSOON_PORT", "2000"), ("MONSOON_MAX_NUM_SEQS", "8")]);
    let config = serve(&line, &variables).expect("valid");
    assert_eq!(config.listen.port, 3000);
    assert_eq!(config.limits.max_num_seqs, 8);
    assert_eq!(config.cache.block_size, 32);
    assert_eq!(config.hub.access, crate::hub::Access::Offline);
    assert_eq!(config.limits.max_num_batched_tokens, 256);
}

#[test]
fn overlap_can_be_switched_by_flag_variable_and_key() {
    let config_file = file("overlap = 'off'\n");
    let line = format!("--config {}", config_file.path().display());
    let on = env(&[("MONSOON_OVERLAP", "on")]);
    for (line, variables, expected) in [
        ("", &env(&[]), OverlapChoice::Auto),
        (line.as_str(), &env(&[]), OverlapChoice::Off),
        (line.as_str(), &on, OverlapChoice::On),
        ("--overlap off", &on, OverlapChoice::Off),
    ] {
        assert_eq!(serve(line, variables).expect("valid").limits.overlap, expected, "{line}");
    }
}

#[test]
fn unknown_and_wrong_keys_of_the_file_are_refused() {
    for (text, words) in [
        ("max-num-seq = 3", &["max-num-seq", "did you mean max-num-seqs?"][..]),
        ("colour = 'red'", &["unknown key colour"]),
        ("port = 99999", &["port", "99999", "65535"]),
        ("port = [1, 2]", &["port", "one value"]),
        ("offline = 'perhaps'", &["offline", "true, false"]),
        ("port = ", &["monsoon"]),
        ("[bench]\nport = 3\n[server]\n", &["unknown key server"]),
    ] {
        let config_file = tempfile::Builder::new().prefix("monsoon").tempfile().expect("made");
        std::fs::write(config_file.path(), text).expect("written");
        let line = format!("--config {}", config_file.path().display());
        let error = serve(&line, &env(&[])).expect_err(text).to_string();
        for word in words {
            assert!(error.contains(word), "{text}: {word:?} is not in {error}");
        }
    }
}

#[test]
fn each_command_reads_its_own_table_of_the_file() {
    let config_file = file("port = 1234\n[bench]\nconcurrency = 32\ninput-len = 17\n");
    let line = format!("bench --config {}", config_file.path().display());
    let Ok(Command::Bench(config)) = parse_with(&line, &env(&[("MONSOON_BENCH_SEED", "5")])) else {
        panic!("bench expected");
    };
    assert_eq!(config.load, Load::Closed { num_clients: 32 });
    assert_eq!((config.input_len, config.seed), (17, 5));
    let config = serve(&format!("--config {}", config_file.path().display()), &env(&[]));
    assert_eq!(config.expect("valid").listen.port, 1234);
}

#[test]
fn keys_and_names_may_be_several_from_every_source() {
    let keys = file("# one per line\nfrom-file\n\n");
    let line = format!(
        "--api-key a,b --api-key c --api-key-file {} --served-model-name x --served-model-name y",
        keys.path().display()
    );
    let config = serve(&line, &env(&[("MONSOON_API_KEY", "hidden")])).expect("valid");
    assert_eq!(config.listen.api_keys, ["a", "b", "c", "from-file"]);
    assert_eq!(config.served_model_names, ["x", "y"]);
    let config = serve("", &env(&[("MONSOON_API_KEY", "d, e")])).expect("valid");
    assert_eq!(config.listen.api_keys, ["d", "e"]);
    assert!(!format!("{config:?}").contains("\"d\""), "a key was printed");
}

#[test]
fn bench_and_chat_refuse_what_cannot_be_meant() {
    for (line, word) in [
        ("bench --concurrency 3 --request-rate 2", "--request-rate"),
        ("bench --num-requests 3 --duration 2", "--duration"),
        ("bench --shared-prefix-len 300", "--shared-prefix-len"),
        ("bench --drop-fraction 1.5", "0..=1"),
        ("bench --request-rate 0", "0.001"),
        ("bench --url localhost:8000", "--url"),
        ("chat --url ftp://x", "--url"),
        ("chat --temperature 3", "0..=2"),
    ] {
        let error = parse_with(line, &env(&[])).expect_err(line).to_string();
        assert!(error.contains(word), "{line}: {word} is not in {error}");
    }
}

#[test]
fn a_base_url_may_end_in_v1() {
    for typed in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
        let Ok(Command::Chat(config)) = parse_with(&format!("chat --url {typed}"), &env(&[]))
        else {
            panic!("chat expected");
        };
        assert_eq!(config.url, "http://h:1", "{typed}");
    }
}

#[test]
fn jobs_have_a_folder_unless_there_is_no_home() {
    let folder =
        |line: &str, pairs: &[(&str, &str)]| serve(line, &env(pairs)).expect("valid").jobs.folder;
    let default = |path: &str| JobsFolder::Default(path.into());
    let home = ("HOME", "/home/someone");
    assert_eq!(folder("", &[home]), default("/home/someone/.local/share/monsoon/jobs"));
    assert_eq!(folder("", &[home, ("XDG_DATA_HOME", "/data")]), default("/data/monsoon/jobs"));
    assert_eq!(folder("--jobs-dir off", &[home]), JobsFolder::Off);
    assert_eq!(folder("--jobs-dir /jobs", &[home]), JobsFolder::Named("/jobs".into()));
    assert_eq!(folder("", &[home, ("MONSOON_JOBS_DIR", "off")]), JobsFolder::Off);
    let error = serve("--jobs-dir off --jobs-store s3://b", &env(&[home])).expect_err("nowhere");
    assert!(error.to_string().contains("--jobs-store"), "{error}");
    let config = serve("--max-num-seqs 9 --max-file-bytes 3MiB", &env(&[home])).expect("valid");
    assert_eq!((config.jobs.rows_in_flight_max, config.jobs.file_bytes_max), (9, 3 << 20));
}

#[test]
fn a_batch_has_its_files_and_a_server_s_flags() {
    let batch = |line: &str, pairs: &[(&str, &str)]| {
        let env = env(&[&[("HOME", "/home/someone")], pairs].concat());
        match parse_with(&format!("batch {line}"), &env) {
            Ok(Command::Batch(config)) => Ok(config),
            Ok(other) => panic!("not batch: {other:?}"),
            Err(error) => Err(error.to_string()),
        }
    };
    let config = batch("in.jsonl -o out.jsonl -- --max-num-seqs 9", &[]).expect("valid");
    assert_eq!(config.errors, Path::new("out.errors.jsonl"));
    assert_eq!((config.rows_in_flight_max, config.serve.limits.max_num_seqs), (18, 9));
    let variables = [("MONSOON_MODEL", "m"), ("MONSOON_BATCH_CONCURRENCY", "5")];
    let config = batch("in.jsonl -o out.jsonl", &variables).expect("valid");
    assert_eq!((config.serve.model.as_deref(), config.rows_in_flight_max), (Some("m"), 5));
    let config = batch("in.jsonl -o out.jsonl --model n", &variables).expect("valid");
    assert_eq!(config.serve.model.as_deref(), Some("n"));
    for (line, word) in [
        ("in.jsonl", "--output"),
        ("-o out.jsonl", "<INPUT>"),
        ("a.jsonl -o a.jsonl", "--output"),
        ("a.jsonl -o b.jsonl --errors b.jsonl", "three files"),
        ("a.jsonl -o b.jsonl -- --max-num-seqs 0", "--max-num-seqs"),
    ] {
        let error = batch(line, &[]).expect_err(line);
        assert!(error.contains(word), "{line}: {word} is not in {error}");
    }
}
