//! The node of a cluster.

mod program;
mod proxy;

pub use self::program::{ProgramConfig, guard};
pub use self::proxy::ProxyConfig;
