"""What a device would do with a model, told without either: predictions from data sheets.

`model`    what a model weighs and computes, from its config.json
`cost`     seconds of one step: the time model
`plan`     the memory ledger, the greatest context, the speed to expect
`trace`    requests as they once arrived somewhere
`replica`  one engine under a virtual clock: the real loop, scheduler and KV cache
`fleet`    many of them, each with the requests that `routing` gives it
`report`   latencies, goodput, cost; `plot` draws them

No torch. Whatever is printed here is a prediction, and says how far earlier ones were off.
"""
