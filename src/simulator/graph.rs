//! The shop: which services there are and who calls whom.
//!
//! ```text
//! visitors ──► frontend ─┬─► catalogue ──► inventory
//!                        ├─► recommendation
//!                        ├─► cart
//!                        └─► checkout ─┬─► cart
//!                                      ├─► payment
//!                                      └─► shipping ──► inventory
//! ```

/// One service of the shop.
#[derive(Debug, PartialEq)]
pub struct Role {
    pub name: &'static str,
    /// What a request may ask of others; each request takes one of these lists, by weight.
    pub operations: &'static [Operation],
    /// Mean of its own work on a request, without what it waits for.
    pub own_ms: f64,
}

/// One kind of request.
#[derive(Debug, PartialEq)]
pub struct Operation {
    pub name: &'static str,
    pub weight: f64,
    /// Called in this order.
    pub calls: &'static [&'static str],
}

const fn only(name: &'static str, calls: &'static [&'static str]) -> Operation {
    Operation {
        name,
        weight: 1.0,
        calls,
    }
}

const fn operation(name: &'static str, weight: f64, calls: &'static [&'static str]) -> Operation {
    Operation { name, weight, calls }
}

/// Every service, callers before those they call.
pub const SHOP: [Role; 8] = [
    Role {
        name: "frontend",
        operations: &[
            operation("browse", 0.45, &["catalogue", "recommendation"]),
            operation("basket", 0.25, &["cart"]),
            operation("order", 0.30, &["checkout"]),
        ],
        own_ms: 4.0,
    },
    Role {
        name: "checkout",
        operations: &[only("place_order", &["cart", "payment", "shipping"])],
        own_ms: 6.0,
    },
    Role {
        name: "catalogue",
        operations: &[operation("list", 0.6, &[]), operation("item", 0.4, &["inventory"])],
        own_ms: 5.0,
    },
    Role {
        name: "recommendation",
        operations: &[only("suggest", &[])],
        own_ms: 8.0,
    },
    Role {
        name: "cart",
        operations: &[only("show", &[])],
        own_ms: 3.0,
    },
    Role {
        name: "payment",
        operations: &[only("charge", &[])],
        own_ms: 10.0,
    },
    Role {
        name: "shipping",
        operations: &[only("quote", &["inventory"])],
        own_ms: 5.0,
    },
    Role {
        name: "inventory",
        operations: &[only("reserve", &[])],
        own_ms: 3.0,
    },
];

/// Where visitors come in.
pub const ENTRANCE: &str = "frontend";

/// The role of that name.
pub fn role(name: &str) -> Option<&'static Role> {
    SHOP.iter().find(|role| role.name == name)
}

impl Role {
    /// The operation at `draw`, uniform in [0, 1).
    pub fn operation(&self, draw: f64) -> &'static Operation {
        let total: f64 = self.operations.iter().map(|operation| operation.weight).sum();
        let mut left = draw * total;
        for operation in self.operations {
            left -= operation.weight;
            if left < 0.0 {
                return operation;
            }
        }
        self.operations.last().expect("every role has an operation")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_an_answer_and_no_circle() {
        for (at, role) in SHOP.iter().enumerate() {
            assert!(!role.operations.is_empty());
            for called in role.operations.iter().flat_map(|operation| operation.calls) {
                let answers = SHOP
                    .iter()
                    .position(|other| other.name == *called)
                    .expect("called, so it exists");
                assert!(answers > at, "{} calls back to {called}", role.name);
            }
        }
    }

    #[test]
    fn every_service_is_reached_from_the_entrance() {
        let mut reached = vec![ENTRANCE];
        let mut next = 0;
        while let Some(name) = reached.get(next).copied() {
            next += 1;
            let role = role(name).unwrap();
            for called in role.operations.iter().flat_map(|operation| operation.calls) {
                if !reached.contains(called) {
                    reached.push(called);
                }
            }
        }
        assert_eq!(reached.len(), SHOP.len());
    }

    #[test]
    fn a_draw_takes_an_operation_by_weight() {
        let frontend = role("frontend").unwrap();
        let names = [0.0, 0.44, 0.46, 0.71, 0.999].map(|draw| frontend.operation(draw).name);
        assert_eq!(names, ["browse", "browse", "basket", "order", "order"]);
    }
}
