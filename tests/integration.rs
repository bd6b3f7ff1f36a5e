mod contract;
mod demo;
mod front_door;
mod programs;
mod starter;
