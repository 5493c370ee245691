//! What a host calls, by what it is for. What is only looked at is in the module above.

mod announce;
mod commit;
mod file;
mod listen;
mod open;
mod opening;
mod scan;
mod shutdown;
mod watched;
mod window;

pub use self::file::ReplicatedFile;
pub use self::opening::Opening;
pub use self::shutdown::ShutdownReport;
pub use self::window::Window;
