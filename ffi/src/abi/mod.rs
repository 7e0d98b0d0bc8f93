//! The boundary to TypeScript: records, codes, their description, and errors.

pub mod description;
pub mod errors;
pub mod layout;
pub mod named;
#[cfg(feature = "bindgen")]
pub mod printer;
