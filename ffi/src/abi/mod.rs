//! The boundary with TypeScript: records, codes, their description, and how errors cross it.

pub mod description;
pub mod errors;
pub mod layout;
pub mod named;
#[cfg(feature = "bindgen")]
pub mod printer;
