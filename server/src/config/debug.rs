//! Secrets stay out of anything printed with {:?}.

use super::{BenchConfig, ChatConfig, ListenConfig};

impl std::fmt::Debug for ListenConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tenants = self.tenants.as_ref().map_or(0, |tenants| tenants.specs.len());
        let keys = self.api_keys.len();
        write!(f, "ListenConfig({}:{}, {keys} API keys, {tenants} tenants)", self.host, self.port)
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
