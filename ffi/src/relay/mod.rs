//! Moving bytes once it is known between whom: connections in pairs, datagrams in flows.

pub mod flows;
pub mod pipes;
pub mod routes;
pub mod tcp;
pub mod udp;
