//! The environment and the TOML file, laid under the command line as clap defaults: clap then gives
//! the right precedence and checks every value with the parser of its flag.

use super::{ConfigError, Environment, FLAG_FILE_BYTES_MAX, read_flag_file};
use clap::{Arg, ArgAction};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What a value that is not from the command line came from, and its parts.
struct Layered {
    origin: String,
    values: Vec<String>,
}

/// Puts the values of environment and file under the flags of the subcommand that `args` names.
pub fn with_layers(
    command: clap::Command,
    args: &[OsString],
    env: &Environment,
) -> Result<clap::Command, ConfigError> {
    let command = with_documented_variables(command);
    let Some((name, config_path)) = find_command(&command, args, env) else {
        return Ok(command);
    };
    let Some(sub) = command.find_subcommand(&name) else {
        return Ok(command);
    };
    let mut layered = match &config_path {
        Some(path) => read_file(sub, &name, path)?,
        None => BTreeMap::new(),
    };
    layered.extend(read_environment(sub, &name, env));
    for (id, value) in &mut layered {
        let arg = sub.get_arguments().find(|a| a.get_id() == id).expect("taken from this list");
        check(arg, value)?;
    }
    Ok(command.mut_subcommand(name, |sub| {
        layered
            .into_iter()
            .fold(sub, |sub, (id, value)| sub.mut_arg(id, |arg| arg.default_values(value.values)))
    }))
}

/// The variable of a flag: MONSOON_PORT for serve, pull and doctor; MONSOON_BENCH_URL and
/// MONSOON_CHAT_URL for the clients, MONSOON_BATCH_CONCURRENCY for batch.
fn variable_name(command: &str, arg: &Arg) -> String {
    let prefix = match command {
        _ if arg.get_id() == "config" => "MONSOON_",
        "bench" => "MONSOON_BENCH_",
        "batch" => "MONSOON_BATCH_",
        "chat" => "MONSOON_CHAT_",
        _ => "MONSOON_",
    };
    format!("{prefix}{}", arg.get_id().as_str().to_ascii_uppercase())
}

fn with_documented_variables(command: clap::Command) -> clap::Command {
    let names: Vec<String> = command.get_subcommands().map(|s| s.get_name().to_string()).collect();
    names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(name.clone(), |sub| {
            sub.mut_args(|arg| {
                let help = arg.get_help().map(|h| h.to_string()).unwrap_or_default();
                let variable = variable_name(&name, &arg);
                match is_layered(&arg) {
                    true => arg.help(format!("{help} [env: {variable}]")),
                    false => arg,
                }
            })
        })
    })
}

/// What must be typed has no default, and flags of another command have layers of their own.
fn is_layered(arg: &Arg) -> bool {
    let is_help = matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
    );
    !is_help && !arg.is_required_set() && !arg.is_last_set()
}

/// The subcommand that was typed, and the configuration file of `--config` or MONSOON_CONFIG.
fn find_command(
    command: &clap::Command,
    args: &[OsString],
    env: &Environment,
) -> Option<(String, Option<PathBuf>)> {
    let matches = command.clone().ignore_errors(true).try_get_matches_from(args).ok()?;
    let (name, sub) = matches.subcommand()?;
    let typed = sub.try_get_one::<PathBuf>("config").ok().flatten().cloned();
    let from_env = || env.get("MONSOON_CONFIG").filter(|v| !v.is_empty()).map(PathBuf::from);
    Some((name.to_string(), typed.or_else(from_env)))
}

fn read_environment(
    sub: &clap::Command,
    name: &str,
    env: &Environment,
) -> BTreeMap<String, Layered> {
    let mut found = BTreeMap::new();
    for arg in sub.get_arguments().filter(|a| is_layered(a) && a.get_id() != "config") {
        let variable = variable_name(name, arg);
        // MONSOON_CACHE is the short name people expect for the folder of downloads.
        let names = match arg.get_id().as_str() {
            "download_dir" => vec![variable, "MONSOON_CACHE".to_string()],
            _ => vec![variable],
        };
        let value = names.iter().find_map(|n| Some((n, env.get(n).filter(|v| !v.is_empty())?)));
        if let Some((variable, value)) = value {
            let values = match arg.get_action() {
                ArgAction::Append => value.split(',').map(|v| v.trim().to_string()).collect(),
                _ => vec![value.clone()],
            };
            let origin = variable.clone();
            found.insert(arg.get_id().to_string(), Layered { origin, values });
        }
    }
    found
}

/// The top level of the file belongs to `serve`; each other command has a table of its name.
fn read_file(
    sub: &clap::Command,
    name: &str,
    path: &Path,
) -> Result<BTreeMap<String, Layered>, ConfigError> {
    let text = read_flag_file(path)?;
    debug_assert!(text.len() as u64 <= FLAG_FILE_BYTES_MAX);
    let file_error = |reason| ConfigError::File { path: path.to_path_buf(), reason };
    let table: toml::Table =
        text.parse().map_err(|e: toml::de::Error| file_error(e.message().to_string()))?;
    let others = ["bench", "batch", "chat", "pull", "doctor"];
    let table = match (name, table.get(name)) {
        ("serve", _) => table,
        (_, None) => return Ok(BTreeMap::new()),
        (_, Some(toml::Value::Table(own))) => own.clone(),
        (_, Some(_)) => return Err(file_error(format!("{name} must be a table: [{name}]"))),
    };
    let mut found = BTreeMap::new();
    for (key, value) in table {
        if name == "serve" && others.contains(&key.as_str()) && value.is_table() {
            continue;
        }
        let id = key.replace('-', "_");
        let known = sub.get_arguments().filter(|a| is_layered(a) && a.get_id() != "config");
        let known: Vec<String> = known.map(|a| a.get_id().to_string()).collect();
        if !known.contains(&id) {
            let nearest = nearest(&id, &known).map(|n| n.replace('_', "-"));
            return Err(ConfigError::UnknownKey { path: path.to_path_buf(), key, nearest });
        }
        let origin = format!("{}: {key}", path.display());
        let values = plain_values(value).ok_or_else(|| {
            file_error(format!("{key} must be a text, a number, true, false or a list of them"))
        })?;
        found.insert(id, Layered { origin, values });
    }
    Ok(found)
}

fn plain_values(value: toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::Array(items) => items.into_iter().map(plain_value).collect(),
        single => Some(vec![plain_value(single)?]),
    }
}

fn plain_value(value: toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(yes) => Some(yes.to_string()),
        _ => None,
    }
}

/// Parses the value as if it had been typed after its flag, so that an error names where it really
/// came from.
fn check(arg: &Arg, layered: &mut Layered) -> Result<(), ConfigError> {
    let error = |reason| ConfigError::Value { origin: layered.origin.clone(), reason };
    match arg.get_action() {
        ArgAction::SetTrue => {
            let value = match layered.values.as_slice() {
                [v] => boolish(v),
                _ => None,
            };
            let value = value.ok_or_else(|| error("allowed: true, false".to_string()))?;
            layered.values = vec![value.to_string()];
            return Ok(());
        }
        ArgAction::Append => {}
        _ if layered.values.len() != 1 => return Err(error("takes one value, not a list".into())),
        _ => {}
    }
    for value in &layered.values {
        let probe = clap::Command::new("monsoon").no_binary_name(true).arg(arg.clone());
        let typed = match arg.get_long() {
            Some(long) => format!("--{long}={value}"),
            None => value.clone(),
        };
        if let Err(e) = probe.try_get_matches_from([typed]) {
            // The rest of clap's message tells how to use the command line, which is not where the
            // value is from.
            let text = e.to_string();
            let text = text.trim_start_matches("error: ");
            let end = text.find("\n\nFor more").unwrap_or(text.len());
            return Err(error(text[..end].split_whitespace().collect::<Vec<_>>().join(" ")));
        }
    }
    Ok(())
}

fn boolish(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// The known key with the fewest differing letters, unless more than a third differ.
fn nearest(key: &str, known: &[String]) -> Option<String> {
    let (distance, best) = known.iter().map(|k| (edit_distance(key, k), k)).min()?;
    (distance * 3 <= key.len().max(best.len())).then(|| best.clone())
}

/// Letters to insert, delete or replace to make `b` of `a` (Levenshtein, 1965).
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a_letter) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for j in 0..b.len() {
            let replaced = diagonal + usize::from(*a_letter != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
