"""The bench: both trainers on a device, side by side, and what came of it as one page (`nest-ssl gpu`, make test-gpu).

Read `recorded` and `measured` first: what is asked of the device. `trainings` runs recorded trainings, many at once,
and compares them; `worker` is one trainer alone with a constant batch, which `orders` asks for timings,
synchronisations and repeats. `results` keeps what was found, `document` writes the page. Nothing here imports NeMo:
trainers are processes.
"""
