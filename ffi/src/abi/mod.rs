//! The boundary with TypeScript: records, codes, their description, and how errors cross it.

pub mod errors;
pub mod layout;
pub mod named;
