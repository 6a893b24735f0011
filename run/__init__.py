"""What a run is told and leaves behind.

command_line, config_file, config, engine_file    what it is told
evaluation/                                       what evaluate.py is told: arguments, suites, rows
folder, resume, weights/                          its folder, where it starts, and with which weights
metrics/, ledger                                  what it measures, and what it could not use
sinks/, console, library_log                      where that goes
errors                                            exit codes, and errors that a user can cause
"""
