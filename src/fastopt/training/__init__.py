"""Training of small models on the CPU: the recipe behind ``fastopt train``.

Read :mod:`fastopt.training.loop` first: it is the whole recipe. The other modules bring what it uses: the data, a
multilayer perceptron, the optimizer and its schedule, the checkpoint and the report. All of it needs the extra
``fastopt[cli]``.
"""
