//! PROXY protocol headers, as far as the core knows them: where one ends. What it says, the decoder knows.

pub mod frame;
