//! Secrets stay out of anything printed with {:?}.

use super::{BenchConfig, ChatConfig, ListenConfig};

impl std::fmt::Debug for ListenConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ListenConfig({}:{}, {} API keys)", self.host, self.port, self.api_keys.len())
    }
}
impl std::fmt::Debug for ChatConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatConfig({}, model {:?})", self.url, self.model)
    }
}
impl std::fmt::Debug for BenchConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BenchConfig({}, {:?}, {:?})", self.url, self.load, self.stop)
    }
}
