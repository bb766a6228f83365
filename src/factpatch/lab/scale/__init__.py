"""What editing with workers takes of memory, network and time: counted from a model's shapes, before it is there.

- `shape`: a model's sizes, from its config alone
- `work`: what a batch and a pass over a corpus consist of, in tokens, operations and bytes
- `machines`: how fast workers, their driver and the network between them are
- `costs`: memory, bytes sent and seconds, which follow from these three
- `simulate`: a map over workers, event by event, and how far more of them pay
- `figures`: the simulation, drawn
"""
