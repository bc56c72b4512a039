//! The agent's shell: everything around `tidegate-agent-core` that touches clocks, disks, sockets and
//! processes. The binary `tidegate-agent` is made of it, and the tests drive its parts.

pub mod port_holder;
pub mod proxy;
pub mod traffic;
