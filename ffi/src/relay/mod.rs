//! Moving the bytes of connections once it is known between whom.

pub mod pipes;
pub mod tcp;
