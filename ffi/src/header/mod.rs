//! PROXY protocol headers, as far as the core knows them: where one ends. The decoder knows the content.

pub mod frame;
