//! Between hosts: clusters, their members, and the connections between them.
//!
//! | module | what it is |
//! | --- | --- |
//! | `wire`, `frame` | what is said: identities, the roster, messages; how it is cut into frames |
//! | `keys`, `token`, `invitations` | who may be trusted, and how that begins |
//! | `store` | what is kept on disk |
//! | `tls`, `link`, `connections` | connections whose ends know each other |
//! | `membership` | this host as a member |
//! | `contact`, `listen`, `joining` | speaking with others: as the one that calls, the one that is called, and the first time |
//! | `guests`, `placing`, `elsewhere`, `migrating` | programs that run on another host than their home, or go there |
//! | `probe` | measuring a connection, as whoever it is handed over to would use it |
//! | `service` | all of it as `skeind` has it, and what commands ask |

mod addresses;
mod connections;
pub mod contact;
mod elsewhere;
mod frame;
pub mod guests;
mod invitations;
mod joining;
mod keys;
mod link;
mod listen;
pub mod membership;
pub mod migrating;
pub mod placing;
mod probe;
pub mod service;
pub mod store;
mod tls;
mod token;
pub mod wire;

#[cfg(test)]
mod tests;
