"""What a run is told and leaves behind.

command_line, config_file, config, engine_file    what it is told
evaluation/                                       what evaluate.py is told: arguments, suites, rows
folder, resume                                    its folder, and where it starts
meter, ledger                                     what it measures, and what it could not use
sinks, tracking, console, library_log                 where that goes
errors                                            exit codes, and errors that a user can cause
"""
