//! What the operator reads when the server is ready.

use super::load::Loaded;
use super::web_page;
use crate::config::{PrefixCachingChoice, ServeConfig};
use crate::http::{WebPage, public_routes};
use crate::units::format_bytes;
use kernels::device::cuda::images;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The lines between start and the first request; the last one says that requests may come.
pub fn summary(
    config: &ServeConfig,
    loaded: &Loaded,
    address: SocketAddr,
    start_time: Duration,
) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(out, "  {name:9} {value}").expect("writing to a string");
    };
    line("model", format!("{} from {}", loaded.names.join(", "), loaded.path.display()));
    let no_kernels = if images::has_kernels() { "" } else { " (this build holds no CUDA kernels)" };
    line("device", format!("{}{no_kernels}", loaded.device));
    line("cache", cache(config, loaded));
    line("context", context(loaded));
    line("limits", limits(config));
    line("keys", keys(config));
    let url = format!("http://{}", reachable(address));
    if web_page(&config.listen) == WebPage::Served {
        line("page", format!("{url}/"));
    }
    let name = &loaded.names[0];
    let body =
        format!(r#"{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}"#);
    let key = match super::keys::ring(&config.listen).is_open() {
        true => "",
        false => " -H 'Authorization: Bearer KEY'",
    };
    line(
        "try",
        format!(
            "curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
        ),
    );
    let seconds = start_time.as_secs_f64();
    writeln!(out, "monsoon is ready on {url} after {seconds:.1} s").expect("writing to a string");
    out
}

fn cache(config: &ServeConfig, loaded: &Loaded) -> String {
    let plan = &loaded.memory;
    let reuse = match config.cache.prefix_caching {
        PrefixCachingChoice::Enabled => "prefixes are reused",
        PrefixCachingChoice::Disabled => "prefixes are not reused",
    };
    format!(
        "{} tokens ({} in blocks of {}, {} a token), {reuse}",
        plan.num_blocks * config.cache.block_size,
        format_bytes(plan.kv_cache_bytes),
        config.cache.block_size,
        format_bytes(plan.kv_bytes_per_token),
    )
}

fn context(loaded: &Loaded) -> String {
    let length = loaded.memory.max_model_len;
    match loaded.memory.capped_from {
        Some(own) => format!(
            "{length} tokens; the model has {own}, the cache holds no more (--kv-cache-memory)"
        ),
        None => format!("{length} tokens"),
    }
}

fn limits(config: &ServeConfig) -> String {
    let limits = &config.limits;
    format!(
        "{} requests at once, {} tokens a step, {} requests or {} tokens waiting, bodies up to {}",
        limits.max_num_seqs,
        limits.max_num_batched_tokens,
        limits.waiting_requests_max,
        limits.waiting_tokens_max,
        format_bytes(config.listen.body_bytes_max as u64),
    )
}

fn keys(config: &ServeConfig) -> String {
    let ring = super::keys::ring(&config.listen);
    if ring.is_open() {
        return "none: whoever reaches the port is served".to_string();
    }
    let public: Vec<&str> = public_routes(web_page(&config.listen)).collect();
    let tenants = config.listen.tenants.as_ref().map(|tenants| tenants.specs.len());
    let tenants = tenants.map(|count| format!(" of {count} tenants")).unwrap_or_default();
    format!("{}{tenants}; without a key only {}", ring.num_keys(), public.join(", "))
}

/// An address that a client on this machine can use: "every network" is none.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => ([127, 0, 0, 1], address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => {
            (std::net::Ipv6Addr::LOCALHOST, address.port()).into()
        }
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_address_can_be_called() {
        for (bound, printed) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("10.1.2.3:80", "10.1.2.3:80"),
        ] {
            let bound: SocketAddr = bound.parse().expect("an address");
            assert_eq!(reachable(bound).to_string(), printed);
        }
    }
}
