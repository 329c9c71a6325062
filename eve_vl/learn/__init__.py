"""`eve learn`: a trained run, its numbers and an index within a given time.

It measures the cost of a step, trains short runs (pilots) that differ in one thing, compares them
on the same validation rows, and spends the rest of the time on the best. plan.json holds each
decision once it is made. A resumed call reads them and measures nothing again, so its weights equal
those of an uninterrupted call.

In order: learn_tasks, data_check, step_cost, pilots, final_runs, conclusion. Each reads and extends
the plan; stage_config and stage_run say how one of its runs is trained.
"""
